"""Uses of private and undocumented names do their work, and fail clearly once a name is gone."""

from datetime import timedelta
from types import SimpleNamespace

import jsonargparse
import pytest
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

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
    with pytest.raises(AttributeError, match="val_check_batch"):
        _compat.validates_after(SimpleNamespace(fit_loop=loop), 0)
    with pytest.raises(AttributeError, match="restarting"):
        _compat.is_in_resumed_epoch(SimpleNamespace(fit_loop=SimpleNamespace()))


def test_only_processes_of_the_subprocess_launcher_are_started_ones():
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=[1, "two"])))
    assert _compat.started_processes(trainer) == []


@pytest.mark.parametrize(("every_n_epoch", "validates"), [(1, [2, 5]), (None, [0, 3, 6])])
def test_a_validation_is_foreseen_within_an_epoch_or_across_epochs(every_n_epoch, validates):
    """The second epoch of 8 batches, validated every 3 batches."""
    found = []
    for batch in range(8):
        loop = SimpleNamespace(total_batch_idx=8 + batch)
        trainer = SimpleNamespace(fit_loop=loop, val_check_batch=3, check_val_every_n_epoch=every_n_epoch)
        found += [batch] if _compat.validates_after(trainer, batch) else []
    assert found == validates


def test_strategies_given_by_name_wait_for_each_other_as_long_as_told():
    class RecordedStrategy(DDPStrategy):
        def __init__(self, **settings):
            self.settings = settings

    before = {name: dict(StrategyRegistry[name]["init_params"]) for name in StrategyRegistry.available_strategies()}
    StrategyRegistry.register("recorded", RecordedStrategy)
    try:
        _compat.limit_waiting(7)
        assert StrategyRegistry.get("recorded").settings == {"timeout": timedelta(minutes=7)}
    finally:
        StrategyRegistry.remove("recorded")
        for name, settings in before.items():
            StrategyRegistry[name]["init_params"] = settings
