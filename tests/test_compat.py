"""Uses of private names fail clearly once a name is gone."""

from types import SimpleNamespace

import jsonargparse
import pytest

from metricloss_pl import _compat


def test_a_private_name_that_is_gone_is_an_error(monkeypatch):
    """Setting it would do nothing, and a checkpoint's settings would not be limited."""
    monkeypatch.delattr(jsonargparse._common, "denying_import_path_entry")
    with pytest.raises(AttributeError, match="denying_import_path_entry"), _compat.import_paths_limited_to([]):
        pass
    with pytest.raises(AttributeError, match="_dump_config"):
        _compat.make_room_for_linked_values(SimpleNamespace())
    epochs = SimpleNamespace(ready=1, started=1, processed=1)
    loop = SimpleNamespace(restarting=True, epoch_progress=SimpleNamespace(current=epochs))
    with pytest.raises(AttributeError, match="_restarting"):
        _compat.start_epoch_after_finished_one(SimpleNamespace(fit_loop=loop))


def test_only_processes_of_the_subprocess_launcher_are_started_ones():
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=[1, "two"])))
    assert _compat.started_processes(trainer) == []
