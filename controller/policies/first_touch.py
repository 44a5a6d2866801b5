"""Today's kernel. Whoever touches a page first is charged for it, for as long as the page lives.

In the article this is the problem that the session opens with. All others use the page for free, and when the first
one's cgroup is removed it cannot go: it stays as a zombie that is charged for memory which others use. What it gives
up: that users pay, and that a removed group is gone. What it has: a page is charged once and never looked at again.
"""

from controller.policies.families import OneOwner


class FirstTouch(OneOwner):
    name = "first_touch"
    rules = "first touch"
