import signal, redis, time
from shared.slots import RunSlots
from tests.orcheo_stack import *
from tests.processes import until
from tests.runs import everything
def test_explore(orcheo):
    start_afresh(orcheo)
    ours = stack_beside(orcheo)
    client = redis.Redis.from_url(orcheo.variables["REDIS_URL"]); slots = RunSlots(client)
    w = upload(orcheo, greet="greet", fail="fail", wait="wait", branches="branches")
    with ours.command("worker", ORCHEO_LOG_LEVEL="DEBUG") as worker, ours.running("dispatcher", ORCHEO_LOG_LEVEL="DEBUG") as d, ours.running("beat"):
        worker.saw("worker_started")
        r = ended(orcheo, orcheo.fire_webhook(w["greet"], {"name": "xylophone"})); ws = r["workspace_id"]
        ended(orcheo, orcheo.fire_webhook(w["fail"], {"name": "xylophone"}))
        ended(orcheo, orcheo.fire_webhook(w["branches"], {"name": "xylophone", "count": 1, "items": ["xylophone"], "nested": {}}))
        until(lambda: slots.in_use(ws) == 0, what="idle")
        d.signal(signal.SIGSTOP)
        r = orcheo.fire_webhook(w["greet"], {"name": "a"}); orcheo.cancel(r["id"])
        print("pending cancelled; slots", slots.in_use(ws))
        d.signal(signal.SIGCONT)
        r2 = ended(orcheo, orcheo.fire_webhook(w["greet"], {"name": "b"}))
        threading_wait = until(lambda: slots.in_use(ws) <= 1, what="r2 back")
        t = time.monotonic()
        try:
            until(lambda: slots.in_use(ws) == 0, what="leak healed", seconds=45)
            print("healed after", time.monotonic() - t)
        except BaseException as e: print("LEAK stays", slots.in_use(ws))
        print(everything(database_of(orcheo), "select * from orcheo_dispatch.dispatch where run_id=%s", r["id"]))
        # stop worker while a run waits
        run = orcheo.fire_webhook(w["wait"], {})
        until(lambda: orcheo.run(run["id"])["status"] == "running", what="runs")
    for p in (worker, d):
        hits = [l for l in p.lines if "xylophone" in l]
        print(len(p.lines), "hits", len(hits)); print("".join(l[:400]+"\n" for l in hits[:10]))
    bad = [l for p in (worker, d) for l in p.lines if " ERROR" in l or "WARNING" in l or "Traceback" in l]
    print("".join(bad[:20]))
    with ours.running("worker", ORCHEO_WORKER_RUN_TIMEOUT="1") as worker, ours.running("dispatcher"):
        run = orcheo.fire_webhook(w["wait"], {})
        r = ended(orcheo, run); h = orcheo.history(run["id"]); print(r["status"], r["error"], h["status"], h.get("error"), h["steps"])
    with ours.running("worker", ORCHEO_WORKER_DRAIN_TIMEOUT="1") as worker, ours.running("dispatcher"):
        run = orcheo.fire_webhook(w["wait"], {})
        until(lambda: orcheo.run(run["id"])["status"] == "running", what="runs")
        worker.signal(signal.SIGTERM); print(worker.exit_code())
        r = ended(orcheo, run); h = orcheo.history(run["id"]); print(r["status"], r["error"], h["status"], h.get("error"), h["steps"])
    assert 0
