"""Bradley-Terry strengths (Bradley and Terry 1952) of players from who won how often against whom."""

from dataclasses import dataclass

import numpy as np

#: Elo points of one unit of log-odds
ELO = 400 / np.log(10)
#: Newton's steps; it converges in a few
_MOST_STEPS = 100


@dataclass(frozen=True)
class Strengths:
    """Log-odds by player, of mean zero within each group of players that can be compared.

    A finite strength exists only among players of whom each beats each other, if only by others in between (Ford
    1957): where somebody always won, no number says by how much. `group` is the number of each player's group.
    """

    log_odds: np.ndarray
    group: np.ndarray

    @property
    def comparable(self) -> bool:
        """Whether all players are of one group."""
        return bool((self.group == self.group[0]).all()) if len(self.group) else True


def strengths(wins: np.ndarray) -> Strengths:
    """The strengths of greatest likelihood; `wins[a, b]` is how often a beat b, a tie counting half for both.

    Raises ValueError where `wins` is not a square table of finite numbers of at least 0.
    """
    wins = np.asarray(wins, dtype=np.float64)
    if wins.ndim != 2 or wins.shape[0] != wins.shape[1]:
        raise ValueError("wins are a square table")
    if not np.isfinite(wins).all() or (wins < 0).any():
        raise ValueError("wins are finite numbers of at least 0")
    from scipy.sparse.csgraph import connected_components

    wins = wins * (1 - np.eye(len(wins)))
    _, group = connected_components(wins > 0, directed=True, connection="strong")
    log_odds = np.zeros(len(wins))
    for each in set(group.tolist()):
        members = np.flatnonzero(group == each)
        log_odds[members] = _fitted(wins[np.ix_(members, members)])
    return Strengths(log_odds, group)


def _fitted(wins: np.ndarray) -> np.ndarray:
    """Newton's method on a concave likelihood; the mean stays zero."""
    games = wins + wins.T
    found = np.zeros(len(wins))
    for _ in range(_MOST_STEPS):
        expected = 1 / (1 + np.exp(found[None, :] - found[:, None]))
        slope = wins.sum(axis=1) - (games * expected).sum(axis=1)
        weights = games * expected * (1 - expected)
        curvature = np.diag(weights.sum(axis=1)) - weights
        # the likelihood does not see a shift of all; lstsq leaves it out
        step = np.linalg.lstsq(curvature, slope, rcond=None)[0]
        # far from the maximum a whole step may overshoot
        step *= min(1.0, 2.0 / max(1e-300, float(abs(step).max())))
        found += step - step.mean()
        if abs(step).max() < 1e-12:
            break
    return found
