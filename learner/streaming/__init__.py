"""Logprobs of tokens while their trajectories still grow: the cached, chunked forward."""
