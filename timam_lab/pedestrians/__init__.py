"""Our rendered pedestrians: a person-search benchmark made on the spot, in the layout of CUHK-PEDES.

It is ours, for exercising the machinery and for controlled studies; it says nothing about results on real data.
"""

from timam_lab.pedestrians.dataset import render_pedestrians
from timam_lab.pedestrians.spec import PedestrianSpec

__all__ = ["PedestrianSpec", "render_pedestrians"]
