"""The watches: kopf, and all that keeps it from harming the operator.

kopf is the host that logs in, lists, watches and reconnects. It calls raw event handlers alone: its change handlers,
daemons and timers would write finalizers and annotations onto the users' resources. Everything else of it is contained:

- `kopf_run` is one life of kopf: its handlers, settings and login. It ends with the first thing that kopf dies of.
- `session` is the HTTP client that kopf gets. It hears of every request, because kopf does not tell which watches are
  open: it tries for ever what is refused, and only warns of a resource that it does not find.
- `thread` gives each life a thread and an event loop of its own. kopf ends for good with the first answer that it does
  not expect: a 401 while keys are rotated, an ERROR event while etcd has no leader, a CRD that is gone. What is left of
  it may wait for ever, and it cancels every task of its loop. It is thrown away together with that loop, so no pass
  ends with it and no lease is lost.

What is tried again, and by whom: kopf repeats a request that fails, without an end (`Retries`). A life that ended is
followed by the next one after a pause. A life is ended at once where there is something else to be watched than when it
began, because kopf looks only then.
"""
