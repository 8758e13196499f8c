"""Where a training is past saving. Imports neither torch nor numba."""

MAX_INTERSECTIONS = 1_500_000_000  # gsplat counts in 32 bits and wraps silently (trainers.md, B6)
COLLAPSE_SHARE = 0.75  # of all Gaussians dead at one refinement: trainers.md D, FV #323, GS #1040
FLUNG_FACTOR = 3.0  # a Gaussian this many initial radii from the centre has left the scene
EXPLOSION_SHARE = 0.5  # of all Gaussians flung out of the scene
