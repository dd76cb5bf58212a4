"""Runs the demo."""

if __name__ == "__main__":
    # Only here: the actors and the learner import this module again, and need not wait for what the orchestration alone imports.
    from examples.cartpole.main import main

    main()
