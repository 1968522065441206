"""The small distillation of notebook 04."""

import pytest
import torch

from koala_nb.core import catalog

pytest.importorskip("koala_nb.nano.lesson", reason="koala_nb/nano is absent")
if not (catalog.data_folder() / "models" / "nano-sdxl" / "training.json").is_file():
    pytest.skip("the teacher nano-sdxl is absent", allow_module_level=True)

from koala_nb.models.unet import weight_map  # noqa: E402
from koala_nb.nano.lesson import Lesson, scenes  # noqa: E402


@pytest.fixture(scope="module")
def lesson():
    return Lesson("nano-koala")


def test_the_student_begins_with_its_teachers_weights(lesson):
    mine, his = lesson.unet.state_dict(), lesson.teacher.state_dict()
    for row in weight_map(lesson.unet, lesson.teacher).itertuples():
        assert torch.equal(mine[row.student], his[row.teacher]), row.student
    assert len(lesson.pairs) == 21


def test_a_few_steps_teach_and_leave_the_teacher_alone(lesson):
    teacher = {name: tensor.clone() for name, tensor in lesson.teacher.state_dict().items()}
    optimizer = torch.optim.AdamW(lesson.unet.parameters(), 5e-4)
    first, _ = lesson.loss(lesson.batch(0, 4))
    for _ in range(6):
        loss, parts = lesson.loss(lesson.batch(0, 4))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 0.9 * float(first.detach())
    assert set(parts) == {"task", "out", "feat"}
    assert all(torch.equal(teacher[n], t) for n, t in lesson.teacher.state_dict().items())


def test_it_draws_with_the_student_and_keeps_the_teacher(lesson):
    before = lesson.pipe.unet
    (image,) = lesson.draw(["a koala on a blue background"])
    assert image.size == (lesson.preset.image_size,) * 2 and lesson.pipe.unet is before


def test_scenes_with_their_captions():
    pictures, captions = scenes(3, kind="person")
    assert len(pictures) == len(set(captions)) == 3
    assert all(picture.size == pictures[0].size for picture in pictures)


def test_a_missing_teacher_is_one_sentence():
    with pytest.raises(FileNotFoundError, match="The teacher nano-nothing is not at"):
        Lesson("nano-koala", "nano-nothing")
