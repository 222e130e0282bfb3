"""The networks: plain `nn.Module`s that know neither Ray nor Lightning."""
