// Makes the calls that stdin lists, one after another, as any Node program does: with @grpc/grpc-js,
// @grpc/proto-loader and the .proto files. Prints what came of each, as JSON. It knows no RPC: test_node.py has them.
//
//     node client.js FOLDER_OF_PROTOS FOLDER_OF_GOOGLE_RPC < calls.json
//
// A call has an address, a method ("package.Service/Method"), requests (several where the caller streams), a key (or
// null), a timeout in seconds, and `until`: the stream is cancelled after an answer that holds this (or null).

const fs = require("fs");
const path = require("path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");
const health = require("grpc-health-check");

const [protos, google] = process.argv.slice(2);
const files = fs.readdirSync(protos, { recursive: true }).filter((file) => file.endsWith(".proto"));
// google/protobuf comes with proto-loader. With google/rpc and `json`, the details of errors are decoded.
const definition = protoLoader.loadSync(
  [...files, "google/rpc/status.proto", "google/rpc/error_details.proto", health.protoPath],
  { includeDirs: [protos, google, path.dirname(health.protoPath)], keepCase: true, longs: String, enums: String, bytes: String, defaults: true, json: true },
);
const api = grpc.loadPackageDefinition(definition);

const holds = (whole, part) =>
  whole === part ||
  (part instanceof Object && Object.keys(part).every((key) => holds(whole?.[key], part[key])));

async function make({ address, method, requests, key, timeout, until }) {
  const [service, name] = method.split("/");
  const Client = service.split(".").reduce((found, part) => found[part], api);
  const { requestStream, responseStream } = Client.service[name];
  const client = new Client(address, grpc.credentials.createInsecure());
  const metadata = new grpc.Metadata();
  if (key) metadata.set("authorization", `Bearer ${key}`);
  const options = { deadline: Date.now() + 1000 * timeout };

  const answers = [];
  const answered = (error, answer) => error ?? answers.push(answer);
  const call = client[name](
    ...(requestStream ? [] : requests), metadata, options, ...(responseStream ? [] : [answered]),
  );
  const ended = new Promise((resolve) => call.on("status", resolve));
  if (requestStream) {
    requests.forEach((request) => call.write(request));
    call.end();
  }
  if (responseStream) {
    try {
      for await (const answer of call) {
        answers.push(answer);
        if (until && holds(answer, until)) call.cancel();
      }
    } catch {
      // The status says what it was.
    }
  }
  const status = await ended;
  client.close();
  const [details] = status.metadata.get("grpc-status-details-bin");
  return {
    answers,
    code: grpc.status[status.code],
    message: status.details,
    trailers: status.metadata.getMap(),
    details: details ? definition["google.rpc.Status"].deserialize(details).details : [],
  };
}

async function main() {
  const outcomes = [];
  for (const call of JSON.parse(fs.readFileSync(0))) outcomes.push(await make(call));
  console.log(JSON.stringify(outcomes));
}

main();
