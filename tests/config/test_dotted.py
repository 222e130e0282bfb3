"""Settings by dotted key."""

from __future__ import annotations

from txclf.config.dotted import changed, flatten_dotted, set_dotted


def test_set_dotted_replaces_values_in_a_copy() -> None:
    before = {"train": {"epochs": 3, "betas": (0.9, 0.99)}, "seed": 0}
    after = set_dotted({"train.epochs": 5, "model.num_layers": 2, "seed": 1}, before)
    assert after == {"train": {"epochs": 5, "betas": (0.9, 0.99)}, "model": {"num_layers": 2}, "seed": 1}
    assert before["train"] == {"epochs": 3, "betas": (0.9, 0.99)}


def test_flatten_dotted_nested_mapping_gives_dotted_keys() -> None:
    settings = {"seed": 0, "train": {"epochs": 3, "class_weights": {"a": 1.0}}, "tune": {"space": {}}}
    assert flatten_dotted(settings) == {
        "seed": 0,
        "train.epochs": 3,
        "train.class_weights.a": 1.0,
        "tune.space": {},
    }


def test_flatten_dotted_is_the_inverse_of_set_dotted() -> None:
    settings = {"a.b.c": 1, "a.d": [1, 2], "e": None}
    assert flatten_dotted(set_dotted(settings, {})) == settings


def test_changed_names_values_that_changed_came_or_went() -> None:
    found = changed({"a": 1, "b": None, "c": "x"}, {"a": 2, "b": None, "d": True})
    assert found == {"a": "`a` (1, now 2)", "c": "`c` (x, now None)", "d": "`d` (None, now True)"}
