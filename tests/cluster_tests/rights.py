"""What an account may do, and that the API server knows of it."""

from collections.abc import Iterable, Sequence

from api import Api, Body
from tests.support.waiting import until

from compression_operator.backends.kinds import PERMISSIONS
from compression_operator.kube.client import Permission

REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


def in_rbac_words(rules: Iterable[Permission]) -> list[Body]:
    """The rules of a Role."""
    return [{"apiGroups": [r.group], "resources": [r.resource], "verbs": list(r.verbs)} for r in rules]


def wait_permitted(api: Api, account: str, where: str, rules: Sequence[Permission]) -> None:
    """Until in that namespace (empty: in all of them) the account may do just this of all that the operator ever does:
    authorizers learn of a rule a little later.
    """
    wanted = _rights(rules)

    def allowed(group: str, resource: str, verb: str) -> bool:
        kind, _, subresource = resource.partition("/")
        asked = {"namespace": where, "verb": verb, "group": group, "resource": kind, "subresource": subresource}
        body = {"spec": {"user": account, "resourceAttributes": asked}}
        return api.create(REVIEWS, body)["status"]["allowed"]

    for right in sorted(_rights(PERMISSIONS)):
        told = f"{right} to be {'allowed' if right in wanted else 'denied'} in {where or 'every namespace'}"
        until(lambda right=right: allowed(*right) == (right in wanted), told)


def _rights(rules: Iterable[Permission]) -> set[tuple[str, str, str]]:
    """(group, resource, verb) of each right."""
    return {(rule.group, rule.resource, verb) for rule in rules for verb in rule.verbs}
