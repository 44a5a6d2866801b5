"""A cgroup to which pages are charged cannot be removed: Hocko's question whether the kernel should just refuse.

Nothing is hidden: the charge stays with a group that can still be seen. What it gives up is given away by Ahmed's
answer: users cannot see what holds the group, so they leave it and make a new one, until the machine is full of them.
"""

from controller.policies.first_touch import FirstTouch


class RefuseRemoval(FirstTouch):
    """The charge is where it is under first touch. The group that holds it is not a zombie, it is one more group."""

    name = "refuse_removal"
