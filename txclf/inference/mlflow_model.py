"""Model of an exported MLflow folder, which holds a copy of this file and a model bundle.

MLflow runs the copy when it loads the model ("models from code"), so nothing is pickled. The copy needs the packages
txclf and mlflow, and uses the public API of txclf only.
"""

from typing import Any

import mlflow
import numpy as np
import pandas as pd

import txclf


class BundleModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Bundle of any task as a model of MLflow, from a table of text columns to a table of predictions."""

    model: txclf.Classifier | txclf.Seq2Seq

    def load_context(self, context: Any) -> None:
        """Load the bundle of the folder, on a GPU if there is one and `device` of the configuration names none."""
        loader = txclf.Seq2Seq if context.model_config["task"] == "seq2seq" else txclf.Classifier
        self.model = loader.load(context.artifacts["bundle"], context.model_config.get("device"))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return `label` and `probability`, or `labels`, with `probabilities` by label; or `output` of `seq2seq`."""
        columns = [model_input[name].fillna("").astype(str) for name in self.model.metadata.text_columns]
        rows = list(zip(*columns, strict=True))
        if isinstance(self.model, txclf.Seq2Seq):
            return pd.DataFrame({"output": self.model.outputs(rows)}, index=model_input.index)
        scores = self.model.probabilities(rows)
        found = self.model.predicted_labels(scores)
        by_label = [dict(zip(self.model.labels, map(float, row), strict=True)) for row in scores]
        if self.model.is_multilabel:
            return pd.DataFrame({"labels": found, "probabilities": by_label}, index=model_input.index)
        table = {
            "label": [labels[0] for labels in found],
            "probability": np.max(scores, axis=1).astype(float) if len(scores) else [],
            "probabilities": by_label,
        }
        return pd.DataFrame(table, index=model_input.index)


mlflow.models.set_model(BundleModel())
