"""``python -m benchmarks`` lists the benchmarks; ``python -m benchmarks NAME --help`` says what one takes."""

import ast
import sys
from importlib import import_module
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run a benchmark by its name: a module or package of this folder with a function ``main(arguments)``.

    Args:
        arguments: The name and what the benchmark takes.

    Returns:
        The exit code: 0, or 2 where there is no such benchmark.
    """
    here = Path(__file__).parent
    files = {file.stem: file for file in here.glob("[!_]*.py")}
    files |= {file.parent.name: file for file in here.glob("*/__init__.py") if "def main(" in file.read_text()}
    if arguments and arguments[0] in files:
        import_module(f"benchmarks.{arguments[0]}").main(arguments[1:])
        return 0
    print("python -m benchmarks NAME")
    for name, file in sorted(files.items()):
        # Read, not imported: a list should not take as long as loading torch.
        about = ast.get_docstring(ast.parse(file.read_text())) or ""
        print(f"  {name:12} {about.partition(chr(10))[0]}")
    return 0 if not arguments or arguments[0] in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
