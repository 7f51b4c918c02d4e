"""Pull, run, exec, stream, watch, remove: one program for Carina, for containerd, and for services of one's own.

program.py ADDRESS REFERENCE NAMESPACE
"""

import asyncio
import sys

import carina


async def program(client: carina.Client, reference: str) -> None:
    async with client.subscribe() as events:
        image = await client.pull(reference)
        print("pulled", image.name)

        done = await client.run(image, ["tr", "a-z", "A-Z"], stdin=b"hello\n")
        print("said", done.stdout.decode().strip(), "and ended with", done.exit_status)

        script = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.1; done"
        async with (
            await client.create_container("counter", image, ["sh", "-c", script]) as container,
            container.task() as task,
        ):
            assert task.stdout is not None
            for _ in range(3):
                print("streamed", (await task.stdout.readline()).decode().strip())
            async with task.exec(["hostname"]) as process:
                await process.communicate()
                print("executed, with status", (await process.wait()).status)

        await client.images.delete(image.name)
        async for event in events:
            if event.namespace == client.namespace and event.topic.startswith(("/images/", "/tasks/exit")):
                print("happened", event.topic)
            if event.topic == "/images/delete" and event.namespace == client.namespace:
                break


async def main(address: str, reference: str, namespace: str) -> None:
    async with carina.Client(address, namespace=namespace) as client:
        await program(client, reference)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
