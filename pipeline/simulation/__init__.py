"""The coordinator in virtual time: modelled engines, learner, rewards and faults.

No socket, no sleep, no clock, no randomness that does not follow from a seed: the same
seed gives the same run, bit for bit. What decides is the real coordinator with the real
plug-ins; what is modelled, and how well, is in docs/simulation.md.
"""
