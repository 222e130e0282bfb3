from txclf import upstream

upstream.hide_transformers_from_torchmetrics()
upstream.load_scipy_signal_when_used()
