// Runs in a tenant's container: `node -e` has no shell to help it. Each target is tried, and what came of it is
// printed: "open" where somebody answered, else the error's code.
"use strict";
const net = require("node:net");
const dgram = require("node:dgram");
const LIMIT = 1500;

function tcp({ host, port }) {
    return new Promise((done) => {
        const socket = net.connect({ host, port });
        const end = (word) => { done(word); socket.destroy(); };
        socket.setTimeout(LIMIT, () => end("ETIMEDOUT"));
        socket.on("connect", () => end("open"));
        socket.on("error", (error) => end(error.code));
    });
}

function udp({ host, port }) {
    return new Promise((done) => {
        const socket = dgram.createSocket("udp4");
        const timer = setTimeout(() => end("ETIMEDOUT"), LIMIT);
        const end = (word) => { clearTimeout(timer); done(word); socket.close(); };
        // The error of a connected socket is told to it.
        socket.on("error", (error) => end(error.code));
        socket.on("message", () => end("open"));
        socket.connect(port, host, () => socket.send("attack"));
    });
}

const targets = JSON.parse(process.argv[1]);
Promise.all(targets.map((target) => ({ tcp, udp })[target.kind](target))).then((words) => {
    console.log(JSON.stringify(words));
    process.exit(0);
});
