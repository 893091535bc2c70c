"""From an opened run to a folder of files that other programs read."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from zosam_jax import trees
from zosam_jax.export import card, verified
from zosam_jax.export.program import Program
from zosam_jax.export.verified import FILES, Verified
from zosam_jax.training import run_folder
from zosam_jax.training.run_folder import RunFolder, UnreadableRunError
from zosam_jax.training.saved_run import SavedRun

# Of README.md, in export.json.
_CARD_CHECKSUM = "card_sha256"


def export_run(
    saved: SavedRun,
    folder: Path | str,
    *,
    formats: Sequence[str] = tuple(FILES),
    layout: str | None = None,
    int8: bool = False,
    logits: bool = False,
    raw: bool = False,
    images: int | None = None,
) -> dict[str, Verified]:
    """Writes a trained network for use without this library, and checks every file against it.

        saved = zosam_jax.open_run("runs/mine", model=Net, data=(train, test))
        export_run(saved, "device", formats=["onnx"])

    Files appear once all of them have been checked; until then none does.

    Args:
      saved: the run, opened with its data.
      folder: where model.stablehlo, model.onnx, model.safetensors, export.json and README.md go;
        those of an earlier export are replaced.
      formats: of stablehlo, onnx and safetensors.
      layout: of safetensors: dense, bitmask or packed; by default bitmask for a sparse network.
      int8: whether weights of onnx and safetensors are rounded to 8 bits.
      logits: whether programs end before the softmax.
      raw: whether they begin after the scaling of pixels.
      images: check on the first so many test images; None for all.

    Returns:
      For "network" and each format what was measured.

    Raises:
      FileExistsError: if the folder holds anything but an export.
      ModuleNotFoundError: if a library is missing, naming the extra that brings it.
      ValueError: for a format or layout that does not exist, a network that cannot be converted, or
        a file that does not compute what it computes; nothing is written then.
    """
    folder, problem, is_dense = Path(folder), saved.run.problem, saved.config.is_dense
    check_folder(folder)
    layout = layout or ("dense" if saved.masks is None else "bitmask")
    verified.check_choice(problem, formats, layout, int8=int8)
    program = Program(problem, saved.run.network, logits=logits, raw=raw)
    with verified.working_folder(folder) as name:
        made = RunFolder(Path(name) / run_folder.EXPORT, "export", may_hold_results=True)
        made.path.mkdir()
        ordered = [one for one in FILES if one in formats]
        found, seen = verified.write(
            problem, program, ordered, made.path, layout=layout, int8=int8, images=images
        )
        progress = saved.run.progress
        about = {
            "run": saved.folder.path.name,
            "checkpoint": progress.total_steps,
            "optimizer": saved.config.optimizer,
            "sparse": "none" if is_dense else saved.config.sparse,
            "sparsity": saved.run.sparsity,
            "inference_cost": saved.run.cost.inference(saved.run.masks_of_whole),
            "training_cost": progress.cost / problem.steps,
            "parameters": trees.size(saved.run.network.params),
            "dense_parameters": trees.size(saved.run.whole),
            "program": program.metadata,
            "layout": layout,
            "int8": int8,
            "raw": raw,
            "images": seen,
            "tolerance": verified.TOLERANCE,
            "device": jax.devices()[0].device_kind,
            "versions": run_folder.versions(),
        }
        largest = max(program.arrays, key=lambda name: program.arrays[name].size)
        text = card.card(about, found, largest)
        made.write_text(run_folder.MODEL_CARD, text)
        measured = {name: one._asdict() for name, one in found.items()}
        record = {**about, "measured": measured, _CARD_CHECKSUM: _checksum(text.encode())}
        made.write_json(run_folder.EXPORT_RECORD, record)
        verified.move(made.path, folder)
    return found


def check_folder(folder: Path) -> None:
    """Raises for a folder with files of another kind, such as a README.md of its own."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"output={str(folder)!r} is a file: choose a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not _is_export(folder):
        raise FileExistsError(
            f"output={str(folder)!r} is not empty, and holds no export to be replaced, or one with "
            f"another {run_folder.MODEL_CARD}: choose another --output or move it away."
        )


def _is_export(folder: Path) -> bool:
    """Whether there is an export, with the card that was written with it or none."""
    readme = folder / run_folder.MODEL_CARD
    try:
        record = run_folder.read_json(folder / run_folder.EXPORT_RECORD, dict[str, Any])
        expected = record.get(_CARD_CHECKSUM)
        return expected is not None and (
            not readme.exists() or expected == _checksum(readme.read_bytes())
        )
    except (OSError, UnreadableRunError):
        return False


def _checksum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
