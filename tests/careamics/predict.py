"""Runs predictions with CAREamics, in its own environment: `predict.py RUNS.json`.

Each run writes with CAREamics' own Zarr strategy or with ours. Beside the runs it leaves
`errors.json`, what each raised, and of each that publishes the predicted regions, for each rank,
as the callback hands them on.
"""

import json
import os
import pickle
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from consumer.careamics import PublishTiles

try:
    from careamics.config import CAREAlgorithm, DataConfig, create_advanced_n2v_config
    from careamics.lightning.callbacks import PredictionWriterCallback
    from careamics.lightning.callbacks.prediction import ZarrTileWriteStrategy
    from careamics.lightning.data import CareamicsDataModule
    from careamics.lightning.modules import create_module
    from lightning.pytorch import Callback, Trainer

    from careamics import CAREamist
except ImportError:
    from careamics.config import CAREAlgorithm
    from careamics.config.data.ng_data_config import NGDataConfig as DataConfig
    from careamics.lightning.dataset_ng.callbacks.prediction_writer import (
        PredictionWriterCallback,
    )
    from careamics.lightning.dataset_ng.callbacks.prediction_writer import (
        WriteTilesZarr as ZarrTileWriteStrategy,
    )
    from careamics.lightning.dataset_ng.data_module import CareamicsDataModule
    from careamics.lightning.dataset_ng.lightning_modules import create_module
    from pytorch_lightning import Callback, Trainer

SEED = 7


class Record(Callback):  # type: ignore[misc]  # Lightning is not where mypy runs
    """Keeps what the model returned, tile by tile, and saves it at the end, one file a rank."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.tiles: list[tuple[Any, dict[str, Any]]] = []

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Keep a batch's data C(Z)YX and their places."""
        for i, data in enumerate(outputs.data):
            spec = {
                key: [int(x[i]) for x in value] if isinstance(value, list) else int(value[i])
                for key, value in outputs.region_spec.items()
            }
            self.tiles.append((np.array(data), spec))

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """Save them."""
        with Path(f"{self.file}-{trainer.global_rank}").open("wb") as file:
            pickle.dump(self.tiles, file)


def model_of(run: dict[str, Any]) -> Any:
    """Return a small UNet with random weights, the same ones each time."""
    inputs, outputs = run["channels"]
    torch.manual_seed(SEED)
    return create_module(
        CAREAlgorithm(
            algorithm="care",
            loss="mae",
            model={
                "architecture": "UNet",
                "in_channels": inputs,
                "num_classes": outputs,
                "conv_dims": len(run["tile"]),
                "depth": 2,
                "num_channels_init": 8,
                "independent_channels": False,
            },
        )
    )


def data_of(run: dict[str, Any]) -> Any:
    """Return the images and how they are tiled."""
    config: dict[str, Any] = {
        "mode": "predicting",
        "data_type": run["data_type"],
        "axes": run["axes"],
        "patching": {"name": "tiled", "patch_size": run["tile"], "overlaps": run["overlap"]},
        "normalization": {"name": "none"},
        "batch_size": run["batch_size"],
        "in_memory": run["data_type"] != "zarr",
        "pred_dataloader_params": {"num_workers": 0},
        "seed": SEED,
    }
    if run["target_axes"] is not None:
        config["target_axes"] = run["target_axes"]
    return CareamicsDataModule(DataConfig(**config), pred_data=sources_of(run))


def sources_of(run: dict[str, Any]) -> list[Any]:
    """Return the sources as CAREamics takes them."""
    if run["data_type"] == "array":
        return [np.load(source) for source in run["sources"]]
    kind = str if run["data_type"] == "zarr" else Path
    return [kind(source) for source in run["sources"]]


def strategy_of(run: dict[str, Any]) -> Any:
    """Return CAREamics' own strategy, or ours where the run says to whom to publish."""
    publish = run["publish"]
    if publish is None:
        return ZarrTileWriteStrategy()
    return PublishTiles(publish["root"], publish["broker"], topology_prefix=publish["prefix"])


def trainer_options(run: dict[str, Any]) -> dict[str, Any]:
    """Return what says on how many processors of this machine to run, and to be quiet."""
    return {
        "accelerator": "cpu",
        "devices": run["devices"],
        "strategy": "ddp" if run["devices"] > 1 else "auto",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def predict(run: dict[str, Any]) -> None:
    """Predict with Lightning's trainer."""
    strategy = strategy_of(run)
    writer = PredictionWriterCallback(run["dirpath"], strategy)
    trainer = Trainer(
        logger=False,
        enable_checkpointing=False,
        callbacks=[writer, *recorders(run)],
        **trainer_options(run),
    )
    if run["publish"] is not None and run["attach"]:
        strategy.attach(writer)
    with nullcontext() if run["publish"] is None or run["attach"] else strategy:
        trainer.predict(model_of(run), datamodule=data_of(run), return_predictions=False)


def predict_careamist(run: dict[str, Any]) -> None:
    """Train Noise2Void for one step with CAREamist, and predict to disk."""
    options = trainer_options(run)
    del options["enable_progress_bar"]
    config = create_advanced_n2v_config(
        experiment_name="one-step",
        data_type="zarr",
        axes=run["axes"],
        patch_size=[64, 64],
        batch_size=run["batch_size"],
        num_epochs=1,
        num_steps=1,
        num_workers=0,
        model_params={"depth": 2, "num_channels_init": 8},
        trainer_params=options,
        seed=SEED,
    )
    careamist = CAREamist(
        config,
        work_dir=Path(run["dirpath"]).parent,
        callbacks=recorders(run),
        enable_progress_bar=False,
    )
    careamist.train(train_data=run["sources"])
    if run["publish"] is not None:
        strategy_of(run).attach(careamist.prediction_writer)
    careamist.predict_to_disk(
        run["sources"],
        prediction_dir=run["dirpath"],
        tile_size=tuple(run["tile"]),
        tile_overlap=tuple(run["overlap"]),
    )


def recorders(run: dict[str, Any]) -> list[Any]:
    """Return what records the run, if it is one to record."""
    return [] if run["publish"] is None else [Record(run["record"])]


def main() -> None:
    """Do all runs."""
    torch.set_num_threads(1)
    file = Path(sys.argv[1])
    errors = {}
    for run in json.loads(file.read_text()):
        try:
            (predict_careamist if run["careamist"] else predict)(run)
        except Exception as error:  # what CAREamics refuses is told, and the next run done
            errors[run["name"]] = f"{type(error).__name__}: {error}"
    if os.environ.get("LOCAL_RANK", "0") == "0":
        (file.parent / "errors.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    main()
