"""The host's work of a decode step, the model's aside."""

import json

import host_cost


def test_a_pass_costs_at_most_a_third_where_eight_are_planned_at_once(monkeypatch, capsys):
    monkeypatch.setattr(host_cost, "SEQUENCES", 64)
    monkeypatch.setattr(host_cost, "STEPS", 64)
    assert host_cost.microseconds() < host_cost.microseconds(passes=1) / 3
    host_cost.main()
    assert json.loads(capsys.readouterr().out)["sequences"] == 64
