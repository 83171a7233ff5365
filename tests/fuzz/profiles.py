"""How many cases the fuzz tests take: 200 in all, the same at each run; by `make fuzz` 5,000, others at each run."""

import os

from hypothesis import settings

settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
settings.register_profile("nightly", max_examples=5000, deadline=None, print_blob=True)

PROFILE = os.environ.get("LC_TRITON_FUZZ", "ci")

# Of all cases, in percent. An interpreted kernel takes some thirty times as long as the CPU path.
SHARES = {
    "faces_1d": 15,
    "faces_2d": 20,
    "faces_3d": 10,
    "interpreted": 10,
    "functions": 10,
    "layers": 15,
    "keras_layers": 9,
    "keras_arguments": 4,
    "keras_names": 1,
    "conversions": 2,
    "functions_of_models": 1,
    "tiles": 1,
    "workload_files": 1,
    "shapes": 1,
}


def cases(of: str) -> settings:
    """The settings of a test that takes its share of all cases."""
    profile = settings.get_profile(PROFILE)
    return settings(profile, max_examples=profile.max_examples * SHARES[of] // 100)
