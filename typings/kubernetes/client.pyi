from typing import Any

class Configuration:
    connection_pool_maxsize: int
    retries: Any
    host: str
    ssl_ca_cert: str | None
    cert_file: str | None
    key_file: str | None
    def auth_settings(self) -> dict[str, dict[str, str]]: ...

class ApiClient:
    user_agent: str
    def __init__(self, configuration: Configuration | None = None) -> None: ...
    def call_api(
        self,
        resource_path: str,
        method: str,
        *,
        query_params: list[tuple[str, str]],
        header_params: dict[str, str],
        body: dict[str, Any] | None,
        auth_settings: list[str],
        _preload_content: bool,
        _request_timeout: tuple[float, float],
    ) -> Any: ...

class ApiException(Exception):
    status: int | None
    reason: str | None
    body: str | bytes | None
    headers: Any
