"""One bulk job over many failed tasks, its process killed three times in the middle; the queue is the ledger.

python benchmarks/bulk_retry.py redis://127.0.0.1:6379/4 sqlite:////tmp/record.db 100000
"""

import sys
import time

from monitor.control.commands import BulkRetry
from monitor.records import JobOutcome
from monitor.records import JobState
from monitor.store import jobs
from tests.control.bulk_shop import Shop
from tests.control.bulk_shop import open_shop
from tests.control.bulk_shop import other_process
from tests.factories import make_id
from tests.workers import wait_for

LEASE_SECONDS = 10.0


def main(broker: str, database: str, number: int) -> None:
    with open_shop(broker, database) as shop:
        began = time.monotonic()
        shop.fail(1, number)
        print(f"{number} failed tasks written in {time.monotonic() - began:.1f} s")
        began = time.monotonic()
        preview = shop.preview(BulkRetry(query="state:failed"))
        print(f"preview of {preview.total} in {time.monotonic() - began:.2f} s, {preview.preview.fidelity}")
        shop.start(BulkRetry(query="state:failed", job=preview.id))
        run(shop, preview.id, number)
        shop.store.close()


def run(shop: Shop, number_of_job: int, number: int) -> None:
    job = jobs.job(shop.store, number_of_job)
    took, at, kills = 0.0, 0, 0
    for share in (0.2, 0.5, 0.8, 1.0):
        with other_process(shop.settings, LEASE_SECONDS) as process:
            wait_for(lambda: shop.job(job).position > at, 120, "the next process to take the job")  # noqa: B023
            first, began = shop.job(job).position, time.monotonic()
            if share < 1.0:
                wait_for(lambda: shop.job(job).position >= share * number, 600, "progress")  # noqa: B023
                process.kill()
                process.wait(10)
                kills += 1
            else:
                shop.wait(job, JobState.DONE, seconds=600)
            took += time.monotonic() - began
            at = shop.job(job).position
            print(f"{at - first} tasks in {time.monotonic() - began:.1f} s")
    job = shop.job(job)
    sent = shop.sent()
    twice = sum(count > 1 for count in sent.values())
    missed = {jobs.sent_as(job, make_id(each)) for each in range(1, number + 1)} - set(sent)
    print(f"killed {kills} times; done {job.count(JobOutcome.DONE)}, left {job.left}, {job.state}")
    print(f"in the queue: {len(sent)} tasks, {twice} twice, {len(missed)} missed")
    print(f"about {number / took:.0f} tasks/s while it ran")
    if twice or missed or job.count(JobOutcome.DONE) != number:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
