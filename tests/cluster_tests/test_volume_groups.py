"""A volume whose files belong to somebody else than the image's user, in a namespace under the restricted profile."""

import os

from api import Body
from operators import FINAL, Namespace

USER, GROUP, VOLUMES_GROUP = 5001, 5002, 5004


def test_a_volume_that_only_its_group_may_write_to(namespace: Namespace, pods: str) -> None:
    security: Body = {"runAsUser": USER, "runAsGroup": GROUP, "fsGroup": VOLUMES_GROUP}
    security |= {"supplementalGroups": [VOLUMES_GROUP], "runAsNonRoot": True}
    one = [{"name": "width", "prune": {"hiddenSize": 64}}]
    with namespace.operator(pods):
        template = {"podTemplate": {"spec": {"securityContext": security}}}
        namespace.submit(jobTemplate=template, finetune=None, students=one, suspend=True)
        namespace.wait_phase("Suspended")
        os.chown(namespace.store, 0, VOLUMES_GROUP)
        namespace.store.chmod(0o770)
        namespace.edit(suspend=False)
        status = namespace.wait_phase(*FINAL)
    assert status["phase"] == "Succeeded", status
    made = [namespace.store / "artifacts" / step["artifact"] for step in status["steps"]]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(USER, GROUP)}
    for pod in namespace.pods():
        had = pod["spec"]["securityContext"]
        assert had["runAsNonRoot"] is True and had["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = [c for c in pod["spec"]["containers"] if c["name"] == "pytorch"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
