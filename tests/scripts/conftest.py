"""What tests of killed and damaged runs share."""

import killing
import pytest


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Ten tiny images, so that a run sees several epochs."""
    return killing.make_images(tmp_path_factory.mktemp("few") / "images")


@pytest.fixture(scope="session")
def whole(photos, tmp_path_factory):
    """A run that nothing happened to, with checkpoints after 3, 6, 9 and 11 updates."""
    log_dir = tmp_path_factory.mktemp("whole") / "run"
    killing.finish(photos, log_dir)
    return log_dir
