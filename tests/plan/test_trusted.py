"""`trust_remote_code: true` of an entry: in the keys of what is made of the model, and of nothing else."""

import json

import pytest
from planning import Folder, experiment, keys, of

from cdpo.config.problems import ConfigError
from cdpo.plan.graph import Plan, PlannedStep

TRUSTED = "own: {path: ../own, trust_remote_code: true}\n"
REWARD = "judge: {path: ../judge, trust_remote_code: true}\n"
MAPS = {"AutoConfig": "configuration_own.C", "AutoModelForCausalLM": "modeling_own.M"}


@pytest.fixture
def own(folder: Folder) -> Folder:
    for name in ("own", "judge"):
        folder.model(name)
        folder.write(f"{name}/config.json", json.dumps({"auto_map": MAPS, "num_labels": 1}))
        folder.write(f"{name}/configuration_own.py", "raise SystemExit('it is run')\n")
        folder.write(f"{name}/modeling_own.py", "raise SystemExit('it is run')\n")
    return folder


def planned(folder: Folder, models: str, rewards: str = "", more: str = "", **changed: str) -> Plan:
    folder.table("models/names.yaml", models)
    folder.table("models/reward.yaml", rewards)
    changed = {"pipelines": "[SFT, RM, DPO, GEN, EVALREWARD]", "model": "[own]", **changed}
    return folder.plan(experiment("{pipeline: DPO, beta: 0.1}", more, **changed))


def only(plan: Plan, pipeline: str) -> PlannedStep:
    (step,) = of(plan, pipeline)
    return step


def test_what_is_made_of_a_trusted_model_has_other_keys_and_its_data_has_not(own: Folder) -> None:
    plain, trusted = planned(own, "own: {path: ../own}\n"), planned(own, TRUSTED)
    assert keys(plain, "PREP") == keys(trusted, "PREP")
    assert not keys(plain, "SFT", "RM", "DPO", "GEN", "EVALREWARD") & keys(trusted)
    assert "trusted" not in only(plain, "SFT").inputs["model"]
    assert only(trusted, "SFT").inputs["model"]["trusted"] is True
    said = planned(own, "own: {path: ../own, trust_remote_code: false}\n")
    assert said.steps.keys() == plain.steps.keys()


def test_trust_is_handed_to_the_steps_that_read_what_was_made_of_it(own: Folder) -> None:
    plan = planned(own, TRUSTED)
    found = {name: only(plan, name).trusted for name in ("PREP", "SFT", "RM", "REFERENCE", "DPO", "GEN", "EVALREWARD")}
    assert found == {
        "PREP": [],
        "SFT": ["model"],
        "RM": ["model"],
        "REFERENCE": ["model"],
        "DPO": ["model"],
        "GEN": ["model"],
        "EVALREWARD": ["reward"],
    }
    assert all(not step.trusted for step in planned(own, "own: {path: ../own}\n").steps.values())
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert {key: step.trusted for key, step in again.steps.items()} == {
        key: step.trusted for key, step in plan.steps.items()
    }


def test_an_adapter_of_a_trusted_model_is_trusted_with_it(own: Folder) -> None:
    folder = own
    folder.table("models/names.yaml", TRUSTED)
    plan = folder.plan(experiment("{pipeline: DPO, beta: 0.1, lora: true}", model="[own]", pipelines="[SFT, DPO, GEN]"))
    assert sorted(only(plan, "GEN").trusted) == ["model", "model_adapter"]


def test_a_trusted_reward_is_no_reason_to_trust_the_policy(own: Folder) -> None:
    more = "EVALREWARD: {reward: judge}\n"
    plan = planned(own, "own: {path: ../own}\n", REWARD, more, pipelines="[SFT, DPO, GEN, EVALREWARD]")
    assert [only(plan, name).trusted for name in ("SFT", "DPO", "GEN", "EVALREWARD")] == [[], [], [], ["reward"]]
    task = "{pipeline: DPR, beta: 0.1, g: 0.3, gamma: 0.3, reward: judge}"
    online = own.plan(experiment(task, model="[own]", pipelines="[SFT, DPO, GEN]"))
    assert [only(online, name).trusted for name in ("SFT", "DPR", "GEN")] == [[], ["reward"], []]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("other/code--modeling_own.M", "names code in another repository (other/code), which its commit does not pin"),
        ("modeling_gone.M", "names code in modeling_gone.py, which is not there"),
    ],
)
def test_code_that_the_key_does_not_cover_is_refused(own: Folder, reference: str, said: str) -> None:
    for maps in ({"AutoModelForCausalLM": reference}, {"AutoTokenizer": [None, reference]}):
        own.write("own/config.json", json.dumps({"auto_map": maps}))
        with pytest.raises(ConfigError) as caught:
            planned(own, TRUSTED)
        assert said in str(caught.value)
        planned(own, "own: {path: ../own}\n")


def test_code_of_the_tokenizer_counts_too(own: Folder) -> None:
    own.write("own/tokenizer_config.json", json.dumps({"auto_map": ["other/code--t.Slow", None]}))
    with pytest.raises(ConfigError, match="another repository"):
        planned(own, TRUSTED)


def test_a_changed_file_of_code_changes_the_keys(own: Folder) -> None:
    before = planned(own, TRUSTED)
    own.write("own/modeling_own.py", "print('changed')\n")
    assert not keys(before, "SFT") & keys(planned(own, TRUSTED))


def test_what_cdpo_builds_has_no_code_to_trust(own: Folder) -> None:
    with pytest.raises(ConfigError, match="is for a model that brings code"):
        planned(own, "own: {build: {kind: tiny}, trust_remote_code: true}\n")


def test_a_model_of_the_hub_is_trusted_before_it_is_there(own: Folder) -> None:
    plan = planned(own, "own: {id: lab/own, trust_remote_code: true}\n")
    assert only(plan, "SFT").inputs["model"]["trusted"] is True
    assert not keys(plan, "SFT") & keys(planned(own, "own: {id: lab/own}\n"))
