"""report: tell the scores of an exported student in its card and report, once they are known. Needs no torch.

The weights are those of the export, as files of two names: an edit of what is evaluated makes no weights anew, and the
folder to publish is whole in either artifact.
"""

import shutil
from pathlib import PurePosixPath

from compression_pipeline.artifact import Artifact, Draft
from compression_pipeline.config import Phase, ReportJob, ReportResult
from compression_pipeline.context import Context
from compression_pipeline.huggingface.terms import CARD
from compression_pipeline.phases.describing import describe_student
from compression_pipeline.report.ancestry import Ancestry
from compression_pipeline.report.reading import exported_of
from compression_pipeline.store.files import link

MODEL = PurePosixPath("model")


def run(job: ReportJob, context: Context) -> ReportResult:
    """Publish `report-<fingerprint>`: `model/` as export wrote it but for the card, and `report/index.html`."""
    inputs = {name: context.store.open(name) for name in job.inputs}
    ancestry = Ancestry.read(*inputs.values())
    made = ancestry.made[Phase.EXPORT]
    exported = exported_of(made.result, made.artifact, made.job.export.dtype)
    context.events.info(f"tells the scores of {job.exported}")
    with context.store.draft(Phase.REPORT, job.fingerprint) as draft:
        take_checkpoint(made.artifact, draft)
        context.stop_if_requested()
        describe_student(ancestry, Phase.REPORT, job, exported, draft.path, context)
        published = draft.publish(
            config=job.to_json(),
            inputs={role: name for role in job.roles if (name := getattr(job, role, None))},
            result=ReportResult().to_json(),
        )
    return published.result(ReportResult)  # another job's, where that was first


def take_checkpoint(exported: Artifact, draft: Draft) -> None:
    """Put the checkpoint without its card into the draft: the same files, or copies on a volume without hard links."""
    (draft.path / MODEL).mkdir()
    for name, record in exported.manifest.files.items():
        if PurePosixPath(name).parent != MODEL or PurePosixPath(name).name == CARD:
            continue
        target = draft.path / name
        if not link(exported.path / name, target):
            shutil.copyfile(exported.path / name, target, follow_symlinks=False)
        draft.hashed(target, record.sha256)
