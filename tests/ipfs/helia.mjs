// A gateway whose blocks are Helia's: what npm's `@helia/verified-fetch` answers, over HTTP on this machine. And a Helia
// that has nothing of its own and asks one gateway.
import { createServer } from 'node:http';
import { once } from 'node:events';
import { fallbackRouter } from '@helia/fallback-router';
import { trustlessGatewayBlockBroker } from '@helia/trustless-gateway-client';
import { createVerifiedFetchWithHelia } from '@helia/verified-fetch';
import { createHeliaLight } from 'helia';
import { importBytes } from 'ipfs-unixfs-importer';

/** Without a network but the one gateway. A router counts as a fallback only beside others, so this is none. */
const start = (gateways) => {
  const router = fallbackRouter({ gateways });
  router.capabilities = () => [];
  const blockBrokers = [trustlessGatewayBlockBroker({ allowInsecure: true, allowLocal: true })];
  return createHeliaLight({ blockBrokers, routers: [router] }).start();
};

/** A gateway over `files`, a list of bytes: its address, their CIDs, what was asked for, and `close`. */
export const heliaGateway = async (files, profile) => {
  const helia = await start([]);
  const cids = [];
  for (const bytes of files) {
    cids.push((await importBytes(bytes, helia.blockstore, { profile })).cid.toString());
  }
  const fetch = await createVerifiedFetchWithHelia(helia);
  const asked = [];
  // Changes an answer before it is sent.
  const gateway = { cids, asked, spoil: undefined };
  const server = createServer(async (request, reply) => {
    try {
      const { pathname } = new URL(request.url, 'http://x');
      asked.push(pathname);
      const answer = await fetch(`ipfs://${pathname.slice('/ipfs/'.length)}`, { headers: { accept: request.headers.accept } });
      reply.writeHead(answer.status, Object.fromEntries(answer.headers));
      for await (const piece of answer.body ?? []) {
        reply.write(gateway.spoil?.(pathname, piece) ?? piece);
      }
      reply.end();
    } catch (error) {
      reply.destroy(error);
    }
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  gateway.url = `http://127.0.0.1:${server.address().port}`;
  gateway.close = async () => {
    server.closeAllConnections();
    server.close();
    await fetch.stop();
    await helia.stop();
  };
  return gateway;
};

/** What Helia gets for `cid` from the gateway at `url` alone, and the status. */
export const heliaFetch = async (cid, url) => {
  const helia = await start([url]);
  const fetch = await createVerifiedFetchWithHelia(helia);
  try {
    const answer = await fetch(`ipfs://${cid}`, { signal: AbortSignal.timeout(30_000) });
    return { status: answer.status, bytes: new Uint8Array(await answer.arrayBuffer()) };
  } finally {
    await fetch.stop();
    await helia.stop();
  }
};
