import pytest

from onedp_ros import resources


def test_the_demo_is_of_the_task_with_golden_predictions_whichever_else_is_released(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "resource", lambda *parts: tmp_path.joinpath(*parts))
    for task in ("coffee", "tea"):
        (tmp_path / "models" / task / "onedp_s").mkdir(parents=True)
        (tmp_path / "models" / task / "onedp_s" / "config.json").touch()
    with pytest.raises(FileNotFoundError, match="no golden predictions"):
        resources.default_task()
    (tmp_path / "models" / "tea" / "golden").mkdir()
    (tmp_path / "models" / "tea" / "golden" / "actions.safetensors").touch()
    assert resources.default_task() == "tea"
