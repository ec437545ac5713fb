from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procreward.envs.robosuite_backend import FreeCamera
from procreward.envs.robosuite_progress import SUCCESS_LINE, TASKS, Reading, get_task
from procreward.errors import UnknownNameError


def reading(**given):
    values = {
        "gripper": np.zeros(3),
        "object": np.zeros(3),
        "target": np.array([0.3, 0.0, 0.0]),
        "width": 0.08,
        "grasped": False,
        "height": 0.0,
        "distance": 0.3,
        "angles": np.zeros(2),
        "success": False,
    }
    return Reading(**{**values, **given})


numbers = st.floats(-1.0, 1.0)
points = st.tuples(numbers, numbers, numbers).map(np.array)
readings = st.builds(
    Reading,
    gripper=points,
    object=points,
    target=points,
    width=st.floats(0.0, 0.09),
    grasped=st.booleans(),
    height=st.floats(-1.0, 1.0),
    distance=st.floats(0.0, 2.0),
    angles=st.tuples(numbers, numbers).map(np.array),
    success=st.booleans(),
)


@pytest.mark.parametrize("name", sorted(TASKS))
@given(now=readings)
def test_progress_is_a_share_and_the_success_line_separates(name, now):
    task = get_task(name)
    progress = task.progress(now)
    assert 0.0 <= progress <= 1.0
    assert (progress >= SUCCESS_LINE) == now.success
    assert (task.stage(now) == len(task.stage_names)) == now.success
    assert 0 <= task.stage(now) <= len(task.stage_names)


@pytest.mark.parametrize(
    ("now", "progress", "stage"),
    [
        (reading(distance=0.30), 0.0, 0),
        (reading(distance=0.117), 0.20, 0),
        (reading(distance=0.012), 0.40, 1),
        (reading(distance=0.012, width=0.042), 0.55, 1),
        (reading(distance=0.012, width=0.061), 0.475, 1),
        (reading(distance=0.005, grasped=True), 0.60, 2),
        (reading(distance=0.005, grasped=True, height=0.00975), 0.75, 2),
        (reading(distance=0.005, grasped=True, height=0.0195), 0.899, 2),
        (reading(distance=0.005, grasped=True, height=0.0195, success=True), 0.90, 3),
        (reading(distance=0.005, grasped=True, height=0.0445, success=True), 0.95, 3),
        (reading(distance=0.005, grasped=True, height=0.3, success=True), 1.0, 3),
    ],
)
def test_lift_by_hand(now, progress, stage):
    lift = get_task("Lift")
    assert lift.progress(now) == pytest.approx(progress)
    assert lift.stage(now) == stage


def test_an_empty_closed_hand_earns_nothing_for_closing():
    lift = get_task("Lift")
    opened = lift.progress(reading(distance=0.02))
    assert lift.progress(reading(distance=0.02, width=0.0)) == opened
    assert lift.progress(reading(distance=0.02, width=0.05)) > opened


def test_stack_by_hand():
    stack = get_task("Stack")
    on_top = np.array([0.3, 0.0, 0.0])
    start = reading(object=np.array([0.05, 0.0, -0.045]))
    held = reading(object=start.object, grasped=True, distance=0.0)
    lifted = reading(object=np.array([0.05, 0.0, 0.01]), grasped=True, height=0.055, distance=0.0)
    over = reading(object=np.array([0.3, 0.0, 0.06]), grasped=True, height=0.105, distance=0.0)
    lowered = reading(object=on_top, grasped=True, height=0.045, distance=0.0)
    done = reading(object=on_top, height=0.045, distance=0.08, success=True)
    chain = [start, held, lifted, over, lowered, done]
    assert [stack.progress(now) for now in chain] == pytest.approx([0, 0.35, 0.5, 0.75, 0.85, 1.0])
    assert [stack.stage(now) for now in chain] == [0, 2, 3, 4, 4, 5]


def test_door_by_hand():
    door = get_task("Door")
    far = reading(distance=0.3)
    near = reading(distance=0.02)
    turned = reading(distance=0.02, angles=np.array([0.0, 1.2]))
    ajar = reading(distance=0.02, angles=np.array([0.15, 1.2]))
    wide = reading(distance=0.02, angles=np.array([0.38, 1.2]), success=True)
    chain = [far, near, turned, ajar, wide]
    assert [door.progress(now) for now in chain] == pytest.approx([0, 0.25, 0.4, 0.62, 1.0])
    assert [door.stage(now) for now in chain] == [0, 1, 1, 2, 3]


def test_unknown_task_is_named_with_a_guess():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'Lift'\?.*Known: Door, Lift"):
        get_task("lift")


def test_a_free_camera_looks_where_it_says():
    camera = FreeCamera(lookat=(0.0, 0.0, 1.0), distance=2.0, azimuth=180, elevation=0)
    position, rotation = camera.pose()
    np.testing.assert_allclose(position, [2.0, 0.0, 1.0], atol=1e-12)
    np.testing.assert_allclose(rotation[:, 0], [0.0, 1.0, 0.0], atol=1e-12)  # right
    np.testing.assert_allclose(rotation[:, 1], [0.0, 0.0, 1.0], atol=1e-12)  # up
    np.testing.assert_allclose(rotation[:, 2], [1.0, 0.0, 0.0], atol=1e-12)  # towards the viewer
