"""CartPole-v1 solved by a DQN whose replay buffer is a process of its own: ``python -m examples.cartpole``."""
