"""The images: what is in them, how large they are, how soon they are rebuilt; and the training that they run."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest
from stack import DOCKER, ROOT, docker, needs_docker

pytestmark = [needs_docker, pytest.mark.timeout(240)]
IMAGES = ("tdreplay-server", "tdreplay-client", "tdreplay-cartpole")
EDITED = "tdreplay-edited"
PARTS = ("protos/tdreplay", "client/tdreplay_client", "server/tdreplay_server")
ARGUMENTS = [f"--build-arg={name}={os.environ[name]}" for name in ("BASE_IMAGE", "TORCH", "TORCH_INDEX") if os.environ.get(name)]


def test_the_client_has_nothing_of_the_server():
    found = "import importlib.util as util; print([name for name in ('torchrl', 'xxhash', 'tdreplay_server', 'pip') if util.find_spec(name)])"
    assert docker("run", "--rm", "tdreplay-client", "python", "-c", found) == "[]"


def test_images_have_a_size():
    sizes = {image: int(docker("image", "inspect", "--format", "{{.Size}}", image)) for image in IMAGES}
    print(", ".join(f"{image}: {size / 1e9:.2f} GB" for image, size in sizes.items()))
    assert sizes["tdreplay-client"] < sizes["tdreplay-server"]


def test_an_edit_is_soon_in_the_image(tmp_path):
    context = tmp_path / "context"
    shutil.copytree(ROOT / "docker", context / "docker", copy_function=os.link)  # The wheels are large.
    for part in PARTS:
        shutil.copytree(ROOT / part, context / part)
    for file in ("pyproject.toml", "constraints.txt", ".dockerignore"):
        shutil.copy(ROOT / file, context)
    with (context / "server" / "tdreplay_server" / "cli.py").open("a") as source:
        source.write("# Edited.\n")
    began = time.monotonic()
    docker("build", "--quiet", "--file", str(context / "docker/Dockerfile"), "--target", "server", *ARGUMENTS, "--tag", EDITED, str(context))
    took = time.monotonic() - began
    assert "# Edited." in docker("run", "--rm", EDITED, "cat", "server/tdreplay_server/cli.py")
    docker("image", "rm", EDITED)
    print(f"rebuilt in {took:.1f} s after an edit")
    assert took < 15


def test_the_stack_trains_cartpole():
    files = ["--file", str(ROOT / "docker" / "compose.yaml")]
    compose = [DOCKER, "compose", "--ansi", "never", "--project-name", "tdreplay-training", *files]
    try:
        training = subprocess.run([*compose, "up", "--scale", "actor=4"], capture_output=True, text=True, timeout=200, check=False)
        assert training.returncode == 0, training.stdout[-3000:] + training.stderr[-1000:]
        assert "Solved." in training.stdout
        assert "learner-1 exited with code 0" in training.stdout
        print(next(line for line in training.stdout.splitlines() if "Solved." in line))
    finally:
        subprocess.run([*compose, "down", "--volumes", "--timeout", "1"], capture_output=True, timeout=60, check=True)
