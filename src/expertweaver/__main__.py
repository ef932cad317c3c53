"""The command line as `python -m expertweaver`, which is how `torchrun -m expertweaver` starts it."""

from expertweaver.cli.app import main

if __name__ == "__main__":
    main()
