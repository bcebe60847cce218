"""An etcd that is restored from a backup while the operator runs: what the cluster has forgotten, it forgets too."""

from pathlib import Path

import pytest
from api import CRD
from bare import bare
from kubelets import NOWHERE
from operators import Namespace
from tests.support.waiting import until

pytestmark = pytest.mark.own_cluster


def test_what_was_written_since_the_backup_has_never_been(tmp_path: Path) -> None:
    folder = tmp_path / "namespace"
    folder.mkdir()
    with bare(tmp_path) as cluster:
        api = cluster.api
        api.apply_crd(CRD)
        namespace = Namespace.create(api, "restored", folder)

        def jobs() -> dict[str, str]:
            return {
                job["metadata"]["labels"]["modelcompression.io/run"]: job["metadata"]["uid"] for job in namespace.jobs()
            }

        # A leader would end anyway, because nobody answers it for too long.
        more = ("--resync-seconds", "1", "--no-leader-election")
        with namespace.operator("localhost/none:1", *more) as operator:
            namespace.submit("kept", jobTemplate=NOWHERE)
            kept = until(lambda: jobs().get("kept"), "its job")
            cluster.backup()
            namespace.submit("lost", jobTemplate=NOWHERE)
            until(lambda: jobs().get("lost"), "its job")
            for count in range(100):  # the restored cluster is not to catch up by what it does when it starts
                api.merge(namespace.run_path("lost"), {"metadata": {"annotations": {"example.com/count": str(count)}}})
            cluster.restore()
            assert operator.wait_end() == 1
            assert "in an older state than they were" in operator.output()
        assert jobs() == {"kept": kept}
        with namespace.operator("localhost/none:1", identity="operator-1") as operator:
            namespace.submit("lost", jobTemplate=NOWHERE)
            until(lambda: jobs().get("lost"), "a job of the run that is made again, in a lower version than before")
            assert jobs()["kept"] == kept
            until(lambda: namespace.status("lost").get("phase") == "Preparing", "its status")
