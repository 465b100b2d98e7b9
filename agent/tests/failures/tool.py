"""One role in one process; an empty line on standard input asks for what it knows so far, in one line of JSON."""
import errno, json, os, selectors, socket, struct, sys, threading, time

def family(address):
    return socket.AF_INET6 if ':' in address else socket.AF_INET

def serve(port, *addresses):
    """Echoes over TCP and UDP."""
    selector = selectors.DefaultSelector()
    for address in addresses:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            s = socket.socket(family(address), kind)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind((address, int(port)))
            if kind == socket.SOCK_STREAM:
                s.listen(64)
            selector.register(s, selectors.EVENT_READ, 'accept' if kind == socket.SOCK_STREAM else 'datagram')
    def loop():
        while True:
            for key, _ in selector.select():
                s = key.fileobj
                try:
                    if key.data == 'accept':
                        selector.register(s.accept()[0], selectors.EVENT_READ, 'stream')
                    elif key.data == 'datagram':
                        data, peer = s.recvfrom(2048)
                        s.sendto(data, peer)
                    else:
                        data = s.recv(2048)
                        if data:
                            s.sendall(data)
                        else:
                            selector.unregister(s)
                            s.close()
                except OSError:
                    if key.data == 'stream':
                        selector.unregister(s)
                        s.close()
    return loop, dict

def repeat(interval, send, receive, s, flow):
    s.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(s, selectors.EVENT_READ)
    at = time.time()
    while True:
        now = time.time()
        if now >= at:
            at = max(at + interval, now)
            flow['sent'] += 1
            try:
                send(now)
            except OSError as e:
                flow['errors'][errno.errorcode.get(e.errno, '?')] = now
        for _ in selector.select(max(0, at - time.time())):
            try:
                sent = receive()
                if sent is not None:
                    flow['answers'].append([sent, time.time()])
            except OSError as e:
                flow['errors'][errno.errorcode.get(e.errno, '?')] = now

def udp(port, target, interval):
    """Datagrams of one flow, each to be echoed."""
    s = socket.socket(family(target), socket.SOCK_DGRAM)
    s.connect((target, int(port)))
    flow = {'sent': 0, 'answers': [], 'errors': {}}
    def receive():
        return struct.unpack('!d', s.recv(2048))[0]
    return lambda: repeat(float(interval), lambda now: s.send(struct.pack('!d', now)), receive, s, flow), lambda: flow

def ping(_, target, interval):
    """ICMP echo requests, IPv4."""
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    s.connect((target, 0))
    flow = {'sent': 0, 'answers': [], 'errors': {}}
    ident = os.getpid() & 0xffff
    def send(now):
        body = struct.pack('!d', now)
        packet = struct.pack('!BBHHH', 8, 0, 0, ident, flow['sent'] & 0xffff) + body
        total = sum(struct.unpack('!%dH' % (len(packet) // 2), packet))
        while total >> 16:
            total = (total & 0xffff) + (total >> 16)
        s.send(packet[:2] + struct.pack('!H', ~total & 0xffff) + packet[4:])
    def receive():
        data = s.recv(2048)
        data = data[(data[0] & 15) * 4:]
        if data[0] == 0 and struct.unpack('!H', data[4:6])[0] == ident:
            return struct.unpack('!d', data[8:16])[0]
    return lambda: repeat(float(interval), send, receive, s, flow), lambda: flow

def tcp(port, target, interval):
    """One connection, kept; numbered messages that must come back in order."""
    flow = {'sent': 0, 'answers': [], 'errors': {}, 'ended': None}
    s = socket.create_connection((target, int(port)), 5)
    s.settimeout(None)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    def loop():
        try:
            while True:
                flow['sent'] += 1
                message = struct.pack('!Qd', flow['sent'], time.time())
                s.sendall(message)
                back = b''
                while len(back) < len(message):
                    part = s.recv(len(message) - len(back))
                    if not part:
                        raise OSError('closed by the peer')
                    back += part
                if back != message:
                    raise OSError('another message came back')
                flow['answers'].append([struct.unpack('!Qd', back)[1], time.time()])
                time.sleep(float(interval))
        except OSError as e:
            flow['ended'] = '%s after %d messages' % (e, flow['sent'])
    return loop, lambda: flow

def deny(port, target, interval):
    """Datagrams and new connections that nobody may receive."""
    flow = {'sent': 0, 'answers': []}
    def loop():
        u = socket.socket(family(target), socket.SOCK_DGRAM)
        u.setblocking(False)
        pending = []
        while True:
            flow['sent'] += 1
            try:
                u.sendto(b'denied', (target, int(port)))
            except OSError:
                pass
            s = socket.socket(family(target), socket.SOCK_STREAM)
            s.setblocking(False)
            s.connect_ex((target, int(port)))
            pending.append(s)
            if len(pending) > 20:
                pending.pop(0).close()
            time.sleep(float(interval))
            try:
                flow['answers'].append(['UDP', u.recvfrom(2048)[1][0]])
            except OSError:
                pass
            for s in list(pending):
                try:
                    flow['answers'].append(['TCP', s.getpeername()[0]])
                    pending.remove(s)
                    s.close()
                except OSError:
                    pass
    return loop, lambda: flow

def watch(_, *sources):
    """Every IP packet from one of the addresses, whatever becomes of it."""
    s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    flow = {'seen': [], 'others': 0}
    def loop():
        while True:
            data, where = s.recvfrom(65536)
            if where[2] == socket.PACKET_OUTGOING:
                continue
            source = None
            if where[1] == 0x0800:
                source, protocol = socket.inet_ntop(socket.AF_INET, data[12:16]), data[9]
            elif where[1] == 0x86dd:
                source, protocol = socket.inet_ntop(socket.AF_INET6, data[8:24]), data[6]
            if source in sources and protocol in (6, 17):
                flow['seen'].append([time.time(), source, protocol])
            else:
                flow['others'] += 1
    return loop, lambda: flow

loop, result = globals()[sys.argv[1]](*sys.argv[2:])
threading.Thread(target=loop, daemon=True).start()
print('{}', flush=True)
for _ in sys.stdin:
    print(json.dumps(result()), flush=True)
