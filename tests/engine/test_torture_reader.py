"""The judge of the torture test sees what it is there to see."""

from torture_reader import KILLED, lost, shared


def line(life, what="unit", step="a", gpu="0", rank=0, unit=0):
    return {"life": life, "what": what, "step": step, "gpu": gpu, "rank": rank, "unit": unit}


def test_one_after_the_other_is_well():
    assert shared([line("x"), line("x"), line("y"), line("y"), line("z", step="b")]) == []
    # two ranks, each on its card
    assert shared([line("x"), line("y", rank=1, gpu="1"), line("x"), line("y", rank=1, gpu="1")]) == []


def test_two_holders_of_a_step_are_seen():
    (wrong,) = shared([line("x", gpu="0"), line("y", gpu="1"), line("x", gpu="0")])
    assert wrong == "a rank 0: x went on (unit) after y had begun"


def test_two_holders_of_a_gpu_are_seen():
    (wrong,) = shared([line("x", step="a"), line("y", step="b"), line("x", step="a")])
    assert wrong == "0: x went on (unit) after y had begun"


def test_work_that_is_done_again_is_counted():
    done = [line("x", unit=unit) for unit in range(6)] + [line("y", unit=unit) for unit in range(4, 8)]
    assert max(lost(done)) == 2
    assert max(lost([*done, line("z", unit=0)])) == 8


def test_only_a_kill_is_a_reason_to_fail():
    assert KILLED.search("killed by SIGKILL (out of memory?)")
    assert not KILLED.search("ended with exit code 3")
