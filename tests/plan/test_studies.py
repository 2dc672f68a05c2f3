"""The studies that cdpo ships plan, and share what they have in common."""

from planning import Folder, counts, of

from cdpo.config.tables import shipped_configs


def test_the_study_of_sail_on_the_playground(folder: Folder) -> None:
    plan = folder.plan((shipped_configs() / "examples/playground_sail.yaml").read_text())
    arms, rates, seeds = 6, 3, 5
    runs = arms * rates * seeds + seeds
    assert counts(plan) == {
        "PREP": 1,
        "SFT": seeds,
        "REFERENCE": seeds,
        "RM": 1,
        "DPO": 2 * rates * seeds,
        **dict.fromkeys(("DDP", "DPP", "DPR", "MIX"), rates * seeds),
        "GEN": 2 * runs,
        "EVALREWARD": 2 * runs,
    }
    assert not any(step.unavailable or step.unresolved for step in plan.steps.values())
    # every arm of a seed starts from that seed's SFT, and is generated from once for each split
    sft = {step.seed: step.key for step in of(plan, "SFT")}
    for name in ("DPO", "DDP", "DPP", "DPR", "MIX"):
        assert all(step.inputs["model"] == {"step": sft[step.seed]} for step in of(plan, name))
    (reward,) = of(plan, "RM")
    assert {step.inputs["reward"]["step"] for name in ("DPR", "MIX") for step in of(plan, name)} == {reward.key}
    # the judge is the gold reward alone, which no method has seen
    assert all(set(step.inputs) == {"responses"} and step.params["gold"] for step in of(plan, "EVALREWARD"))
    assert not any(run.marks for run in plan.runs)
    assert all(run.select for run in plan.runs)
    assert len({run.select["family"] for run in plan.runs if run.select}) == 1 + arms
    assert {len(name) <= 96 for name in (run.name for run in plan.runs)} == {True}
