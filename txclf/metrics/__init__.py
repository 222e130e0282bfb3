from txclf import upstream

upstream.hide_transformers_from_torchmetrics()
