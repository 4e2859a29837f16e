"""Tasks that search a memory: training-free baselines and RECO."""
