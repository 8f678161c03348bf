"""The search: which variant at which site gives the best model for the latency.

The steps, each narrowing what the next one looks at (and each resumable from the run directory):

====  ==================  =======================================================================
file  step                what it answers
====  ==================  =======================================================================
`pricing`      price      what does each variant cost at each kind of site, under MPC?
`sensitivity`  B          how far does replacing ONE site move the teacher's predictions, untrained?
`surrogate`    B          if those effects simply added up, which architectures would be best?
`study`        C          an Optuna study on assembled, untrained students: what is really best?
`front`        hand-over  the non-dominated candidates, and the few worth distilling
====  ==================  =======================================================================

`search` runs them in order. Nothing here names a model family, a task or a variant, except the published
recipes in `space.BASELINES`, which are data.
"""

from nas.evaluate import Evaluation, Evaluator
from nas.front import Candidate, Front, hypervolume
from nas.limits import Limits, LimitsError
from nas.pricing import CostTable, build_cost_table, table_path
from nas.scores import Classification, Scorer
from nas.search import check_limits, search
from nas.sensitivity import Sensitivities, sensitivity
from nas.space import BASELINES, SearchSpace, SearchSpaceError
from nas.study import StudySettings, run_study
from nas.surrogate import SurrogatePoint, surrogate_front

__all__ = [
    "BASELINES",
    "Candidate",
    "Classification",
    "CostTable",
    "Evaluation",
    "Evaluator",
    "Front",
    "Limits",
    "LimitsError",
    "Scorer",
    "SearchSpace",
    "SearchSpaceError",
    "Sensitivities",
    "StudySettings",
    "SurrogatePoint",
    "build_cost_table",
    "check_limits",
    "hypervolume",
    "run_study",
    "search",
    "sensitivity",
    "surrogate_front",
    "table_path",
]
