// A certified OpenID provider, oidc-provider, as the token endpoint of the interop tests, over https on the loopback
// interface:
//
//   node oidc_provider.js CONFIG.json      CONFIG has `key`, `certificate`, `authority` (PEM) and `clients`
//
//   POST /oauth/token           takes a secret in the body or the header, an assertion, or a certificate
//   POST /basic/oauth/token     another issuer with the same clients, which takes secrets in the header alone
//   POST /moved/oauth/token     redirects to the first
//   POST /oauth/revoke          revokes a token
//   GET  /check                 204 for a good bearer token, 401 for none or a bad one, 403 for that of a client without
//                               the scope: what nginx's auth_request wants
//
// It prints a line for each request: `token WAY STATUS` and `check STATUS`. A client's `lifetime` is that of its
// tokens, in seconds. With a `resource` they are JWTs, and otherwise opaque.
'use strict';

const crypto = require('crypto');
const fs = require('fs');
const https = require('https');
const { pathToFileURL } = require('url');

const SCOPE = 'messages';
const RESOURCES = ['urn:example:mesh', 'urn:example:other']; // /check takes tokens for the first
const SECRET = 'client_secret_basic'; // a client with this method may use the body too, where the issuer takes it
const METHODS = {
  '': [SECRET, 'client_secret_post', 'private_key_jwt', 'tls_client_auth', 'self_signed_tls_client_auth'],
  '/basic': [SECRET],
};

function way({ headers, oidc, socket }) {
  if (headers.authorization) return 'basic';
  if (oidc?.body?.client_assertion) return 'assertion';
  if (oidc?.body?.client_secret) return 'body';
  return socket.getPeerX509Certificate() ? 'certificate' : 'none';
}

function makeProvider({ Provider, errors }, origin, path, clients, signing) {
  const provider = new Provider(origin + path, {
    clients: clients
      .map((client) => ({
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
        scope: SCOPE,
        token_endpoint_auth_method: SECRET,
        ...client,
      }))
      .filter((client) => METHODS[path].includes(client.token_endpoint_auth_method)),
    clientAuthMethods: METHODS[path],
    extraClientMetadata: { properties: ['lifetime'] },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      mTLS: {
        enabled: true,
        selfSignedTlsClientAuth: true,
        tlsClientAuth: true,
        getCertificate: ({ socket }) => socket.getPeerX509Certificate(),
        certificateAuthorized: ({ socket }) => socket.authorized,
        certificateSubjectMatches: ({ socket }, property, expected) =>
          property === 'tls_client_auth_san_dns' && Boolean(socket.getPeerX509Certificate().checkHost(expected)),
      },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => undefined,
        getResourceServerInfo: (_, resource) => {
          if (!RESOURCES.includes(resource)) throw new errors.InvalidTarget();
          return { scope: SCOPE, audience: resource, accessTokenFormat: 'jwt' };
        },
      },
      revocation: { enabled: true },
    },
    jwks: { keys: [{ ...signing.export({ format: 'jwk' }), use: 'sig', alg: 'RS256' }] },
    routes: { revocation: '/oauth/revoke', token: '/oauth/token' },
    scopes: [SCOPE, 'reports'],
    ttl: { ClientCredentials: (ctx, token, client) => client.lifetime ?? 600 },
  });
  provider.use(async (ctx, next) => {
    await next();
    if (ctx.path === '/oauth/token') console.log(`token ${way(ctx)} ${ctx.status}`);
  });
  provider.on('server_error', (ctx, error) => console.error('error', error));
  return provider;
}

// The client that a JWT of ours is for, if it is good for messages.
function jwtClient(token, signing) {
  const [header, payload, signature] = token.split('.');
  const signed = Buffer.from(`${header}.${payload}`);
  const key = crypto.createPublicKey(signing);
  if (!crypto.verify('sha256', signed, key, Buffer.from(signature, 'base64url'))) return undefined;
  const { aud, client_id: client, exp } = JSON.parse(Buffer.from(payload, 'base64url'));
  return aud === RESOURCES[0] && exp > Date.now() / 1000 ? client : undefined;
}

async function opaqueClient(token, ClientCredentials) {
  const found = await ClientCredentials.find(token);
  return found?.isValid ? found.clientId : undefined;
}

async function check(request, response, providers, signing) {
  const [, token = ''] = /^Bearer (\S+)$/.exec(request.headers.authorization ?? '') ?? [];
  let status = 401;
  for (const { Client, ClientCredentials } of providers) {
    const isJwt = token.split('.').length === 3;
    const id = isJwt ? jwtClient(token, signing) : await opaqueClient(token, ClientCredentials);
    const client = id && await Client.find(id);
    if (client && status === 401) status = client.scope === SCOPE ? 204 : 403;
  }
  console.log(`check ${status}`);
  const challenge = token ? 'Bearer error="invalid_token"' : 'Bearer';
  response.writeHead(status, status === 401 ? { 'WWW-Authenticate': challenge } : {}).end();
}

async function main() {
  const library = await import(pathToFileURL(require.resolve('oidc-provider'))); // NODE_PATH is not for `import`
  const { key, certificate, authority, clients } = JSON.parse(fs.readFileSync(process.argv[2]));
  const signing = crypto.generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;
  // Whoever shows a certificate is let in here: what it is worth is decided for each client.
  const server = https.createServer({ key, cert: certificate, ca: authority, requestCert: true, rejectUnauthorized: false });
  server.listen(0, '127.0.0.1', () => {
    const origin = `https://localhost:${server.address().port}`;
    const providers = Object.keys(METHODS).map((path) => makeProvider(library, origin, path, clients, signing));
    const [everything, basic] = providers.map((provider) => provider.callback());
    server.on('request', (request, response) => {
      const { url } = request;
      if (url === '/check') {
        check(request, response, providers, signing).catch((error) => response.destroy(error));
      } else if (url.startsWith('/moved/')) {
        response.writeHead(307, { Location: `${origin}/oauth/token` }).end();
      } else if (url.startsWith('/basic/')) {
        request.originalUrl = url; // as Express would mount it
        request.url = url.slice('/basic'.length);
        basic(request, response);
      } else {
        everything(request, response);
      }
    });
    console.log(`listening on ${server.address().port}`);
  });
}

main();
