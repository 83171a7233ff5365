"""The number of cases of the fuzz tests: 200, the same in each run, or 5,000 new ones by `make fuzz`."""

import os

from hypothesis import settings

settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
settings.register_profile("nightly", max_examples=5000, deadline=None, print_blob=True)

PROFILE = os.environ.get("LC_TRITON_FUZZ", "ci")

# The percentage of cases of each test. An interpreted kernel takes about thirty times as long as the CPU path.
SHARES = {
    "passes_1d": 15,
    "passes_2d": 20,
    "passes_3d": 10,
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
    """The settings of a test with its share of the cases."""
    profile = settings.get_profile(PROFILE)
    return settings(profile, max_examples=profile.max_examples * SHARES[of] // 100)
