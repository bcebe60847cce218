"""No secret in anything that a job writes: real jobs meet every kind of fault, and all that they leave is searched."""

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hub_server import Hub, Repository, serving
from hypothesis import given
from hypothesis import strategies as st
from launching import Launch
from preparing import Preparation, rows
from tiny import texts

from compression_pipeline.errors import UserError
from compression_pipeline.events import Events
from compression_pipeline.redaction import HIDDEN, Redactor, guarded
from compression_pipeline.sources.token import hub_token

TOKEN = "hf_Planted/Token+0123456789"  # noqa: S105 (of a test)


def written(token: str) -> list[bytes]:
    """How a token may be told."""
    encoded = [base64.b64encode(prefix + token.encode())[4:-4] for prefix in (b"", b"u:", b"user:")]
    return [token.encode(), quote(token, safe="").encode(), quote(token, safe="").lower().encode(), *encoded]


# -- the token of the environment -------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", " {}", "\t{}\n\n"])
@pytest.mark.parametrize("on_cluster", [True, False])
def test_white_space_around_a_token_is_left_out(around: str, on_cluster: bool) -> None:
    assert hub_token({"HF_TOKEN": around.format(TOKEN)}, on_cluster=on_cluster) == TOKEN


@pytest.mark.parametrize(
    "token", ["hf_one hf_two", "hf_one\nhf_two", "hf_one\x00two", "\ufeffhf_one", "hf_\x1b[0m", "hf_ü", "hf_\udcff"]
)
def test_what_is_no_token_is_refused_where_it_was_set(token: str) -> None:
    for on_cluster, where in ((True, "teacher.secretRef: the Secret's value holds"), (False, "HF_TOKEN holds")):
        with pytest.raises(UserError) as raised:
            hub_token({"HF_TOKEN": token}, on_cluster=on_cluster)
        assert str(raised.value).startswith(where)
        assert "hf_" not in str(raised.value)


def test_an_empty_token_is_none_on_this_machine_and_a_mistake_in_a_secret() -> None:
    assert hub_token({}, on_cluster=True) is None
    assert hub_token({"HF_TOKEN": " "}, on_cluster=False) is None
    with pytest.raises(UserError, match="secretRef: the Secret's value is empty"):
        hub_token({"HF_TOKEN": "\n"}, on_cluster=True)


# -- the redactor -----------------------------------------------------------------------------------------------------


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=12, max_size=60))
def test_every_way_to_write_a_secret_is_hidden(secret: str) -> None:
    redactor = Redactor.of({"HF_TOKEN": f"{secret}\n"})
    told = [
        f"Bearer {secret}",
        json.dumps({"header": secret}),
        repr(secret),
        repr(secret.encode()),
        f"https://host/path?token={quote(secret, safe='')}&x",
        f"https://user:{quote(secret, safe='')}@host/",
        *(f"Basic {base64.b64encode(f'{user}:{secret}'.encode()).decode()}" for user in ("", "u", "us", "user")),
    ]
    for line in told:
        left = redactor.text(line)
        assert HIDDEN in left
        assert secret not in left
        assert quote(secret, safe="") not in left
        assert base64.b64encode(secret.encode())[4:-4].decode() not in left


def test_secrets_are_known_by_the_names_of_variables_and_in_addresses(tmp_path: Path) -> None:
    key = tmp_path / "one-of-mine"
    key.touch()
    own = {
        "WANDB_API_KEY": "abcdefghij",
        "MIRROR_PASSWORD": "correct-horse",
        "HTTPS_PROXY": "http://me:sesame-open@proxy:3128",
        "GITHUB_TOKEN": "true",  # no secret is as short
        "TOKENIZERS_PARALLELISM": "false-or-true",
        "SSH_PRIVATE_KEY": str(key),  # a path
        "API_TOKEN_FILE": "/run/secrets/not-mounted",
        "AWS_SECRET_ACCESS_KEY": "/wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEK",
    }
    left = Redactor.of(own).text(" ".join(own.values()))
    assert (
        left
        == f"{HIDDEN} {HIDDEN} http://{HIDDEN}@proxy:3128 true false-or-true {key} /run/secrets/not-mounted {HIDDEN}"
    )
    assert not Redactor.of({"HOME": "/root"}).needed


def test_whoever_writes_in_a_guarded_process_tells_no_secret(tmp_path: Path) -> None:
    """A child, a C library, a line that comes in pieces, one without an end: none goes past the pipe."""
    program = """
import os, subprocess, sys
from compression_pipeline.redaction import Redactor, guarded
token = os.environ["HF_TOKEN"]
with guarded(Redactor.of()):
    print("printed", token)
    sys.stderr.write(f"told {token}\\n")
    subprocess.run(["printenv", "HF_TOKEN"], check=True)
    os.write(2, token[:9].encode())
    os.write(2, token[9:].encode())
    os.write(1, b"x" * 200_000 + token.encode() + b"y" * 200_000)
print("after", len(token))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"HF_TOKEN": TOKEN}, capture_output=True, check=True
    )
    assert TOKEN.encode() not in done.stdout + done.stderr
    assert done.stdout.startswith(f"printed {HIDDEN}\n{HIDDEN}\nxxx".encode())
    assert done.stdout.endswith(f"yyyafter {len(TOKEN)}\n".encode())
    assert done.stdout.count(b"x") == 200_000
    assert done.stdout.count(b"y") == 200_000
    assert done.stderr == f"told {HIDDEN}\n{HIDDEN}".encode()


def test_an_event_stays_json_whatever_the_secret_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "12345678")
    monkeypatch.setenv("OTHER_PASSWORD", r"\y234-567")
    stream, expected = io.StringIO(), {"total": HIDDEN, "more": HIDDEN, "share": HIDDEN, "kept": [1, 2.5, True]}
    result = {"total": 12345678, "more": 9123456780, "share": 0.12345678, "kept": [1, 2.5, True]}
    Events(stream).result(result | {"said": r"x \y234-567 12345678"})
    line = stream.getvalue()
    assert json.loads(line)["result"] == expected | {"said": f"x {HIDDEN} {HIDDEN}"}
    redactor = Redactor.of()
    assert redactor.lines(line.encode()) == line.encode()
    raw = b"12345678 {\n" + json.dumps(result).encode() + b"\r\n{12345678}\n"
    left = redactor.lines(raw)
    assert left.startswith(b"*** {\n{")
    assert left.endswith(b"}\r\n{***}\n")
    assert json.loads(left.splitlines()[1]) == expected


def test_without_a_secret_nothing_stands_between(capfd: pytest.CaptureFixture[str]) -> None:
    before = os.fstat(1)
    with guarded(Redactor.of({})):
        assert os.path.samestat(before, os.fstat(1))


# -- jobs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tiny_teacher: Path) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in tiny_teacher.iterdir()}
    with serving(Hub({"models/owner/model": Repository(files, private=True)}, token=TOKEN)) as found:
        yield found


class Job:
    """prepare with a planted token, as a pod runs it, and everything that it wrote."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder = folder
        self.hub = hub
        self.preparation = Preparation(folder, "hf://owner/model")
        self.preparation.write("volume/corpus.jsonl", *rows(*texts()[:12]))

    def run(
        self, token: str, *, teacher: str = "hf://owner/model", **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        job = self.preparation.job("pvc://claim/corpus.jsonl", teacher={"model": teacher})
        job = job.model_copy(update={"source_roots": {"pvc://claim": str(self.folder / "volume")}})
        own = {
            "COMPRESSION_CONFIG": json.dumps(job.for_image()),
            "COMPRESSION_TERMINATION_MESSAGE": str(self.folder / "termination"),
            "HF_ENDPOINT": self.hub.url,
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "HF_TOKEN": token,
        }
        return subprocess.run(
            [sys.executable, "-m", "compression_pipeline", "prepare"],
            env=os.environ | own | environment,
            capture_output=True,
            check=False,
        )

    def said(self) -> str:
        return json.loads((self.folder / "termination").read_text())["message"]

    def search(self, done: subprocess.CompletedProcess[bytes], *pieces: str) -> None:
        everything = [done.stdout, done.stderr, *(p.read_bytes() for p in self.folder.rglob("*") if p.is_file())]
        for content in everything:
            for form in (form for piece in pieces for form in written(piece)):
                assert form not in content, content[max(0, content.find(form) - 200) :][:400]


@pytest.fixture
def job(tmp_path: Path, hub: Hub) -> Job:
    return Job(tmp_path, hub)


def test_a_token_that_ends_in_a_line_break_opens_the_model(job: Job) -> None:
    done = job.run(f"{TOKEN}\n")
    assert done.returncode == 0, done.stderr
    job.search(done, TOKEN)


def test_a_secret_of_two_lines_is_refused_by_name(job: Job) -> None:
    done = job.run(f"{TOKEN}\nhf_AnotherToken-9876543210")
    assert done.returncode == 64
    assert job.said().startswith("teacher.secretRef: the Secret's value holds a space, a line break or another")
    job.search(done, TOKEN, "hf_AnotherToken-9876543210")


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("another token", 64, "was refused (401)"),
        ("nobody listens", 75, "can't be reached"),
        ("no address", 64, "HF_ENDPOINT is no address of a server"),
        ("credentials in the address", 64, "there is no such model at http://***@127.0.0.1"),
        ("no such model", 64, "was not found (404)"),
        ("a library's own words", 64, "RuntimeError: asked with"),
    ],
)
def test_no_fault_tells_the_token(job: Job, hub: Hub, fault: str, code: int, said: str) -> None:
    teacher, environment = "hf://owner/model", {}
    match fault:
        case "another token":
            hub.token = f"{TOKEN}-another"
        case "nobody listens":
            environment = {"HF_ENDPOINT": f"http://user:{quote(TOKEN, safe='')}@127.0.0.1:9/{quote(TOKEN, safe='')}"}
        case "no address":
            environment = {"HF_ENDPOINT": f"hf.example.com/{TOKEN}"}
        case "credentials in the address":
            teacher = "hf://owner/nothing"
            environment = {"HF_ENDPOINT": hub.url.replace("//", f"//user:{quote(TOKEN, safe='')}@")}
        case "no such model":
            teacher = "hf://owner/nothing"
        case _:
            environment = {"PYTHONPATH": str(_raising(job.folder / "site"))}
    done = job.run(TOKEN, teacher=teacher, **environment)
    assert done.returncode == code, done.stderr
    assert said in job.said()
    job.search(done, TOKEN)


def _raising(site: Path) -> Path:
    """A Python whose download client warns of the token, logs it and raises with it."""
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import sys, types\n"
        "def run(job, context):\n"
        "    import logging, os, subprocess, threading, warnings\n"
        "    token = os.environ['HF_TOKEN']\n"
        "    warnings.warn(f'sent {token}')\n"
        "    logging.getLogger('urllib3').warning('header %r', {'authorization': f'Bearer {token}'})\n"
        "    thread = threading.Thread(target=lambda: {}[token])\n"
        "    thread.start(); thread.join()\n"
        "    subprocess.run(['printenv', 'HF_TOKEN'])\n"
        "    context.events.warning(f'asked with {token}')\n"
        "    raise RuntimeError(f'asked with {token}')\n"
        "module = types.ModuleType('compression_pipeline.phases.prepare')\n"
        "module.run = run\n"
        "sys.modules[module.__name__] = module\n"
    )
    return site


def test_a_phase_that_is_killed_or_fails_to_start_tells_no_token(tmp_path: Path) -> None:
    launch = Launch(tmp_path)
    try:
        launched = launch(
            "def run(job, context):\n    sys.stderr.write(os.environ['WANDB_API_KEY']); os.kill(os.getpid(), 9)",
            environment={"WANDB_API_KEY": TOKEN},
        )
        assert launched.wait() == 75
        assert TOKEN not in launched.output + launched.errors
        assert HIDDEN in launched.errors
    finally:
        launch.close()
