"""Each case in a process of its own: what is imported stays so."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

DEFERRED = """
import sys
from lartpc_ds.lazy_compiler import defer_compiler, is_loaded
defer_compiler()
import torch
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([weight])
def step():
    optimizer.zero_grad()
    weight.sum().backward()
    optimizer.step()
step()
with torch.device("meta"):
    torch.nn.init.normal_(torch.empty(3, 3))
    torch.nn.Conv2d(1, 1, 3)(torch.empty(1, 1, 9, 9))
assert not is_loaded() and "torch._inductor" not in sys.modules
"""
USES = {
    "compile": """
compiled = torch.compile(lambda x: x.sin() + 1, backend="eager")
assert torch.equal(compiled(torch.zeros(2)), torch.ones(2))
""",
    "submodule": """
import torch._dynamo.config
from torch._dynamo.backends.registry import lookup_backend
import torch._dynamo.backends.registry as registry
assert registry is sys.modules["torch._dynamo.backends.registry"] is torch._dynamo.backends.registry
assert torch._dynamo.config is sys.modules["torch._dynamo.config"] and "eager" in torch._dynamo.list_backends(None)
""",
    "attribute": "assert torch._dynamo.config.recompile_limit > 0",
}
STILL_RIGHT = """
step()
assert is_loaded() and type(torch._dynamo) is type(sys)
from torch.utils.checkpoint import checkpoint
x = torch.ones(2, requires_grad=True)
checkpoint(torch.sin, x, use_reentrant=False).sum().backward()
assert torch.equal(x.grad, torch.ones(2).cos())
"""


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_the_compiler_comes_when_it_is_asked_for(use: str) -> None:
    done = subprocess.run([sys.executable, "-c", DEFERRED + use + STILL_RIGHT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_launcher_of_one_machine_imports_no_torch() -> None:
    code = (
        "import sys; from lartpc_ds.jobs.supervise.bare import main\n"
        "sys.argv = ['x', 'deepspeed.launcher.launch', '--help']\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "assert 'torch' not in sys.modules and 'deepspeed.launcher.launch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
