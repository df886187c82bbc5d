"""Programs that a model wrote, executed in the verifier: what is asked, what comes back, and who asks.

async with verifier(settings_of(os.environ, unsafe_local=False)) as run:
    result = await run(Execution("python", "def double(x): return 2 * x", "double", ((1,), (2.5,))))
# Result("done", (Returned(2), Returned({"float": "5.0"})))
"""

from stages.common.execution.client import Settings, UnavailableError, settings_of, verifier
from stages.common.execution.limits import LIMITS, REVISION, Limits
from stages.common.execution.records import Execution, Raised, Result, Returned, Value
from stages.common.execution.values import Large, Strange, decode, encode, same

__all__ = [
    "LIMITS",
    "REVISION",
    "Execution",
    "Large",
    "Limits",
    "Raised",
    "Result",
    "Returned",
    "Settings",
    "Strange",
    "UnavailableError",
    "Value",
    "decode",
    "encode",
    "same",
    "settings_of",
    "verifier",
]
