package kvserver

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"golang.org/x/net/websocket"
	"google.golang.org/protobuf/reflect/protoreflect"

	"muster/kvserver/internal/loopback"
)

// exchange is an HTTP request as curl would send it.
type exchange struct {
	name, method, path, body string
	header                   http.Header
	// lines is after how many lines of an endless answer to stop; 0 reads all.
	lines int
}

func post(path, body string) exchange {
	return exchange{name: "POST " + path + " " + body[:min(len(body), 80)], method: http.MethodPost, path: path, body: body}
}

func (e exchange) as(name string) exchange { e.name = name; return e }

func (e exchange) with(header, value string) exchange {
	e.header = e.header.Clone()
	if e.header == nil {
		e.header = http.Header{}
	}
	e.header.Set(header, value)
	return e
}

// first stops reading after n lines.
func (e exchange) first(n int) exchange { e.lines = n; return e }

func b64(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// answerTo is the status, the headers and the body, as they are on the wire.
func (e exchange) answerTo(t *testing.T, client *http.Client, base string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, e.method, base+e.path, strings.NewReader(e.body))
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(request.Header, e.header)
	if host := request.Header.Get("Host"); host != "" {
		request.Host = host
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var body strings.Builder
	if e.lines == 0 {
		_, err = io.Copy(&body, response.Body)
	}
	for reader := bufio.NewReader(response.Body); err == nil && strings.Count(body.String(), "\n") < e.lines; {
		var line string
		line, err = reader.ReadString('\n')
		body.WriteString(line)
	}
	if err != nil {
		t.Fatalf("after %q: %v", body.String(), err)
	}
	response.Header.Del("Date")
	response.Header.Del("Content-Length") // identities differ in it
	var text strings.Builder
	fmt.Fprintln(&text, response.Status)
	_ = response.Header.Write(&text)
	for name, values := range response.Trailer {
		fmt.Fprintf(&text, "trailer %s: %q\n", name, values)
	}
	return text.String() + "\n" + body.String()
}

// unlike are the members of JSON objects that may differ; see differing.
var unlike = regexp.MustCompile(`"(cluster_id|member_id|raft_term|raftTerm|raftIndex|raftAppliedIndex|dbSize|dbSizeInUse|dbSizeQuota|leader|token|peerURLs|clientURLs)":( ?)("[^"]*"|\[[^]]*\])`)

// itself is what each side has files of its own of.
var itself = regexp.MustCompile(`"(blob|remaining_bytes)":( ?)"[^"]*",?|("hash":) ?[0-9]+\}`)

// memberID is told apart from the ID of a lease by where it is.
var memberID = regexp.MustCompile(`("members":\s?\[\{)"ID":( ?)"[^"]*"`)

func masked(answer string) string {
	answer = itself.ReplaceAllString(answer, `$3`)
	return memberID.ReplaceAllString(unlike.ReplaceAllString(answer, `"$1":$2*`), `$1"ID":$2*`)
}

// Every method of the JSON gateway answers on the wire as etcd's does.
func TestGatewayAnswersAreEtcds(t *testing.T) {
	t.Parallel()
	etcd, ours := bothSides(t)
	key, value, end := b64("foo"), b64("bar"), b64("fop")
	for _, e := range []exchange{
		post("/v3/kv/put", `{"key":"`+key+`","value":"`+value+`"}`),
		post("/v3/kv/put", `{"key":"`+key+`","value":"`+b64("baz")+`","prev_kv":true}`),
		post("/v3/kv/put", `{"key":"`+key+`","prevKv":true,"unknown":1}`).as("the other spelling, and an unknown field"),
		post("/v3/kv/put", `{}`),
		post("/v3/kv/put", ``).as("no body"),
		post("/v3/kv/put", `{"key":"***"}`).as("not base64"),
		post("/v3/kv/put", `{"key":`).as("half a body"),
		post("/v3/kv/put", `{"key":"`+key+`","lease":"77"}`),
		post("/v3/kv/put", `{"key":"`+key+`","value":"`+b64(strings.Repeat("x", 1600*1024))+`"}`).as("too large"),
		post("/v3/kv/put", `{"key":"`+key+`","value":"`+b64(strings.Repeat("x", 3<<20))+`"}`).as("larger than gRPC allows"),
		post("/v3/kv/range", `{"key":"`+key+`"}`),
		post("/v3/kv/range", `{"key":"`+key+`","range_end":"`+end+`","sort_order":"DESCEND","sort_target":1,"limit":"5"}`),
		post("/v3/kv/range", `{"key":"`+key+`","revision":1000}`),
		post("/v3/kv/range", `{"key":"`+key+`","sort_order":"SIDEWAYS"}`),
		post("/v3/kv/range", `{"key":"`+key+`"}`).with("Content-Type", "text/plain").as("another content type"),
		post("/v3/kv/range", `{"key":"`+key+`"}`).with("Authorization", "nothing").as("a token that nobody asks for"),
		post("/v3/kv/txn", `{"compare":[{"target":"CREATE","key":"`+key+`","create_revision":"0"}],"success":[{"request_put":{"key":"`+key+`","value":"`+value+`"}}],"failure":[{"request_range":{"key":"`+key+`"}}]}`),
		post("/v3/kv/txn", `{"success":[{"request_txn":{"success":[{"requestDeleteRange":{"key":"`+key+`"}}]}}]}`),
		post("/v3/kv/deleterange", `{"key":"`+b64("\x00")+`","range_end":"`+b64("\x00")+`","prev_kv":true}`),
		post("/v3/kv/compaction", `{"revision":"3","physical":true}`),
		post("/v3/kv/compaction", `{"revision":"1"}`),
		post("/v3/lease/grant", `{"TTL":"600","ID":"7"}`),
		post("/v3/lease/grant", `{"TTL":600,"ID":7}`),
		post("/v3/kv/put", `{"key":"`+key+`","lease":7}`),
		post("/v3/lease/keepalive", `{"ID":"7"}`),
		post("/v3/lease/keepalive", `{"ID":"7"}`+"\n"+`{"ID":"8"}`).as("keep two alive"),
		post("/v3/lease/timetolive", `{"ID":"7","keys":true}`),
		post("/v3/kv/lease/timetolive", `{"ID":"8"}`),
		post("/v3/lease/leases", `{}`),
		post("/v3/kv/lease/leases", `{}`),
		post("/v3/kv/lease/revoke", `{"ID":"7"}`),
		post("/v3/lease/revoke", `{"ID":"7"}`),
		post("/v3/watch", `{"create_request":{"key":"`+key+`","start_revision":"3","prev_kv":true,"filters":["NODELETE"]}}`).first(2),
		post("/v3/watch", `{"create_request":{"key":"`+key+`","start_revision":"1"}}`).first(2),
		post("/v3/watch", `{"create_request":{"key":"`+key+`"}} {"cancel_request":{"watch_id":"0"}}`).first(2),
		post("/v3/cluster/member/list", `{}`),
		post("/v3/cluster/member/list", `{"linearizable":true}`),
		post("/v3/cluster/member/add", `{}`),
		post("/v3/cluster/member/add", `{"peerURLs":["nonsense"]}`),
		post("/v3/cluster/member/remove", `{"ID":"5"}`),
		post("/v3/cluster/member/update", `{"ID":"5","peerURLs":["http://127.0.0.1:1"]}`),
		post("/v3/cluster/member/promote", `{"ID":5}`),
		post("/v3/maintenance/transfer-leadership", `{"targetID":"5"}`),
		post("/v3/maintenance/status", `{}`),
		post("/v3/maintenance/alarm", `{"action":"GET"}`),
		post("/v3/maintenance/defragment", `{}`),
		post("/v3/maintenance/hash", `{}`),
		post("/v3/maintenance/hashkv", `{}`),
		post("/v3/maintenance/snapshot", `{}`).first(1),
		post("/v3/maintenance/downgrade", `{"action":"VALIDATE","version":"3.6.0"}`),
		post("/v3/maintenance/downgrade", `{"action":"VALIDATE","version":"3.4.0"}`),
		post("/v3/auth/status", `{}`),
		post("/v3/auth/enable", `{}`),
		post("/v3/auth/authenticate", `{"name":"root","password":"pass"}`),
		post("/v3/lock/lock", `{"name":"`+b64("mine")+`","lease":"99"}`),
		post("/v3/lock/lock", `{"name":"`+b64("mine")+`","lease":"99"}`).with("Accept", "*/*"),
		post("/v3/lock/unlock", `{"key":"`+b64("mine")+`"}`),
		post("/v3/lock/unlock", `{}`),
		post("/v3/election/leader", `{"name":"`+b64("seat")+`"}`),
		post("/v3/election/proclaim", `{}`),
		post("/v3/election/resign", `{}`),
		post("/v3/election/campaign", `{"name":"`+b64("seat")+`","lease":"99"}`),
		post("/v3beta/kv/range", `{"key":"`+key+`"}`),
		post("/v3alpha/kv/range", `{"key":"`+key+`"}`),
		post("/v3/kv/nothing", `{}`),
		post("/v3/", ``),
		post("/v3", ``),
		post("/v3//kv/range", ``),
		{name: "GET a method", method: http.MethodGet, path: "/v3/kv/range"},
		{name: "PUT a method", method: http.MethodPut, path: "/v3/kv/range"},
		{name: "HEAD a method", method: http.MethodHead, path: "/v3/kv/range"},
		{name: "OPTIONS of a method", method: http.MethodOptions, path: "/v3/kv/range"},
		{name: "OPTIONS of health", method: http.MethodOptions, path: "/health"},
		{name: "GET, meant as POST", method: http.MethodPost, path: "/v3/kv/range", header: http.Header{"X-Http-Method-Override": {"GET"}, "Content-Type": {"application/x-www-form-urlencoded"}}},
	} {
		t.Run(e.name, func(t *testing.T) {
			want, got := masked(e.answerTo(t, http.DefaultClient, etcd.url)), masked(e.answerTo(t, http.DefaultClient, ours.url))
			if want != got {
				t.Errorf("the answer differs (-etcd +ours):\n%s", cmp.Diff(want, got))
			}
		})
	}
}

// Whatever has a path in the .proto files is there: a path that is not answers
// 404 to every request.
func TestGatewayHasEveryPath(t *testing.T) {
	t.Parallel()
	server := running(t, single(t))
	base := "http://" + server.clients[0].Addr().String()
	var paths []string
	for _, file := range []protoreflect.FileDescriptor{pb.File_rpc_proto, v3lockpb.File_v3lock_proto, v3electionpb.File_v3election_proto} {
		for i := range file.Services().Len() {
			for j := range file.Services().Get(i).Methods().Len() {
				paths = append(paths, pathsOf(file.Services().Get(i).Methods().Get(j))...)
			}
		}
	}
	if len(paths) < 50 {
		t.Fatalf("only %q", paths)
	}
	for _, path := range paths {
		e := exchange{method: http.MethodGet, path: path} // all are POST
		if got := e.answerTo(t, http.DefaultClient, base); !strings.HasPrefix(got, "501 Not Implemented\n") || !strings.Contains(got, "Method Not Allowed") {
			t.Errorf("%s answers %s", path, got)
		}
	}
}

// pathsOf are the paths of a method in its google.api.http option.
func pathsOf(method protoreflect.MethodDescriptor) (paths []string) {
	method.Options().ProtoReflect().Range(func(option protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		if option.FullName() != "google.api.http" {
			return true
		}
		fields := option.Message().Fields()
		rule, more := value.Message(), value.Message().Get(fields.ByName("additional_bindings")).List()
		paths = append(paths, rule.Get(fields.ByName("post")).String())
		for i := range more.Len() {
			paths = append(paths, more.Get(i).Message().Get(fields.ByName("post")).String())
		}
		return false
	})
	return paths
}

// A websocket takes the requests of a stream, and gives its answers, one in a
// message.
func TestGatewaySocketsAreEtcds(t *testing.T) {
	t.Parallel()
	etcd, ours := bothSides(t)
	talk := func(base, path string, say []string, answers int) (heard []string) {
		conn, err := websocket.Dial("ws"+strings.TrimPrefix(base, "http")+path, "", base)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for _, message := range say {
			if err := websocket.Message.Send(conn, message); err != nil {
				t.Fatal(err)
			}
		}
		for range answers {
			var message string
			if err := websocket.Message.Receive(conn, &message); err != nil {
				t.Fatalf("after %q: %v", heard, err)
			}
			heard = append(heard, masked(message))
		}
		return heard
	}
	for _, s := range []side{etcd, ours} {
		post("/v3/kv/put", `{"key":"`+b64("k")+`","value":"`+b64("1")+`"}`).answerTo(t, http.DefaultClient, s.url)
	}
	for name, c := range map[string]struct {
		path    string
		say     []string
		answers int
	}{
		"watch":     {"/v3/watch", []string{`{"create_request":{"key":"` + b64("k") + `","start_revision":2}}`, `{"create_request":{"key":"` + b64("l") + `","watch_id":9}}`}, 3},
		"keepalive": {"/v3/lease/keepalive", []string{`{"ID":1}`, `{"ID":2}`}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			want, got := talk(etcd.url, c.path, c.say, c.answers), talk(ours.url, c.path, c.say, c.answers)
			slices.Sort(want) // what is created later may come before the first event
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the messages differ (-etcd +ours):\n%s", diff)
			}
		})
	}
}

// With auth enabled the gateway takes a token in the Authorization header, and
// passes it on to locks and elections, too.
func TestGatewayAuthIsEtcds(t *testing.T) {
	t.Parallel()
	etcd, ours := bothSides(t)
	tokens := map[string]string{} // of each side and user
	user := func(name string, e exchange) exchange { return e.with("User", name).as(name + ": " + e.name) }
	key := b64("foo")
	for _, e := range []exchange{
		post("/v3/auth/user/add", `{"name":"root","password":"pass"}`),
		post("/v3/auth/user/add", `{"name":"root","password":"pass"}`).as("the same user"),
		post("/v3/auth/user/add", `{"name":"u","password":"pass"}`),
		post("/v3/auth/role/add", `{"name":"r"}`),
		post("/v3/auth/role/add", `{"name":"root"}`),
		post("/v3/auth/role/grant", `{"name":"r","perm":{"permType":"READWRITE","key":"`+key+`","range_end":"`+b64("fop")+`"}}`),
		post("/v3/auth/role/get", `{"role":"r"}`),
		post("/v3/auth/role/list", `{}`),
		post("/v3/auth/user/grant", `{"user":"root","role":"root"}`),
		post("/v3/auth/user/grant", `{"user":"u","role":"r"}`),
		post("/v3/auth/user/get", `{"name":"u"}`),
		post("/v3/auth/user/list", `{}`),
		post("/v3/auth/user/changepw", `{"name":"u","password":"changed"}`),
		post("/v3/auth/enable", `{}`),
		post("/v3/auth/authenticate", `{"name":"root","password":"wrong"}`),
		post("/v3/auth/authenticate", `{"name":"root","password":"pass"}`).with("User", "root"),
		post("/v3/auth/authenticate", `{"name":"u","password":"changed"}`).with("User", "u"),
		post("/v3/kv/put", `{"key":"`+key+`"}`).as("nobody puts"),
		post("/v3/kv/put", `{"key":"`+key+`"}`).with("Authorization", "made.1").as("a made-up token"),
		user("u", post("/v3/kv/put", `{"key":"`+key+`"}`)),
		user("u", post("/v3/kv/put", `{"key":"`+b64("other")+`"}`)),
		user("u", post("/v3/kv/range", `{"key":"`+key+`"}`)),
		user("u", post("/v3/auth/user/list", `{}`)),
		user("u", post("/v3/auth/disable", `{}`)),
		user("u", post("/v3/watch", `{"create_request":{"key":"`+b64("other")+`"}}`).first(1)),
		user("u", post("/v3/watch", `{"create_request":{"key":"`+key+`","start_revision":"2"}}`).first(2)),
		user("u", post("/v3/maintenance/hash", `{}`)),
		user("u", post("/v3/lease/grant", `{"ID":"5","TTL":"100"}`)),
		post("/v3/lease/grant", `{"ID":"6","TTL":"100"}`).as("nobody grants a lease"),
		post("/v3/lock/lock", `{"name":"`+b64("foo")+`"}`).as("nobody locks"),
		post("/v3/lock/lock", `{"name":"`+b64("foo")+`","lease":"5"}`).as("nobody locks with a lease"),
		user("u", post("/v3/lock/lock", `{"name":"`+b64("other")+`","lease":"5"}`)),
		user("u", post("/v3/lock/lock", `{"name":"`+b64("foo")+`","lease":"5"}`)),
		post("/v3/lock/unlock", `{"key":"`+b64("foo/5")+`"}`).as("nobody unlocks"),
		user("u", post("/v3/lock/unlock", `{"key":"`+b64("foo/5")+`"}`)),
		user("u", post("/v3/election/campaign", `{"name":"`+b64("foo")+`","lease":"5","value":"`+b64("v")+`"}`)),
		user("u", post("/v3/election/leader", `{"name":"`+b64("foo")+`"}`)),
		user("u", post("/v3/election/observe", `{"name":"`+b64("foo")+`"}`).first(1)),
		post("/v3/election/observe", `{"name":"`+b64("foo")+`"}`).as("nobody observes"),
		user("u", post("/v3/election/leader", `{"name":"`+b64("other")+`"}`)),
		user("root", post("/v3/lease/revoke", `{"ID":"5"}`)),
		user("root", post("/v3/auth/role/revoke", `{"role":"r","key":"`+key+`","range_end":"`+b64("fop")+`"}`)),
		user("root", post("/v3/auth/user/revoke", `{"name":"u","role":"r"}`)),
		user("root", post("/v3/auth/role/delete", `{"role":"r"}`)),
		user("root", post("/v3/auth/user/delete", `{"name":"u"}`)),
		user("root", post("/v3/auth/disable", `{}`)),
		post("/v3/auth/status", `{}`),
	} {
		t.Run(e.name, func(t *testing.T) {
			ask := func(s side) string {
				asked, name := e, e.header.Get("User")
				if token := tokens[s.url+name]; token != "" {
					asked = e.with("Authorization", token)
				}
				got := asked.answerTo(t, http.DefaultClient, s.url)
				if token := theToken.FindStringSubmatch(got); token != nil {
					tokens[s.url+name] = token[1]
				}
				return masked(got)
			}
			if diff := cmp.Diff(ask(etcd), ask(ours)); diff != "" {
				t.Errorf("the answer differs (-etcd +ours):\n%s", diff)
			}
		})
	}
}

var theToken = regexp.MustCompile(`"token":\s?"([^"]*)"`)

// Origins and host names are admitted as etcd admits them, and the gateway and
// the profiles can be switched off and on.
func TestHTTPAdmissionIsEtcds(t *testing.T) {
	t.Parallel()
	etcd, ours := bothSidesWith(t, func(etcd *embed.Config, ours *Config) {
		etcd.CORS = map[string]struct{}{"http://good:1": {}}
		etcd.HostWhitelist = map[string]struct{}{loopback.Host(): {}, "good": {}}
		etcd.EnableGRPCGateway, etcd.EnablePprof = false, true
		ours.CORS, ours.HostWhitelist = []string{"http://good:1"}, []string{"127.0.0.1", "good"}
		ours.EnableGRPCGateway, ours.EnablePprof = false, true
	})
	status := exchange{method: http.MethodGet, path: "/health"}
	for _, e := range []exchange{
		status.as("no origin"),
		status.with("Origin", "http://good:1").as("an origin"),
		status.with("Origin", "http://bad:1").as("another origin"),
		status.with("Host", "good:1").as("a host"),
		status.with("Host", "good").as("a host without port"),
		status.with("Host", "bad:1").as("another host"),
		status.with("Host", "::1").as("a host with too many colons"),
		{name: "OPTIONS", method: http.MethodOptions, path: "/v3/kv/put", header: http.Header{"Origin": {"http://good:1"}}},
		{name: "OPTIONS from elsewhere", method: http.MethodOptions, path: "/v3/kv/put", header: http.Header{"Origin": {"http://bad:1"}}},
		post("/v3/kv/range", `{}`).as("no gateway"),
		post("/v3beta/kv/range", `{}`).as("no older gateway"),
		{name: "the command line", method: http.MethodGet, path: "/debug/pprof/cmdline"},
		{name: "no such profile", method: http.MethodGet, path: "/debug/pprof/nothing"},
		{name: "POST variables", method: http.MethodPost, path: "/debug/vars"},
	} {
		t.Run(e.name, func(t *testing.T) {
			if diff := cmp.Diff(e.answerTo(t, http.DefaultClient, etcd.url), e.answerTo(t, http.DefaultClient, ours.url)); diff != "" {
				t.Errorf("the answer differs (-etcd +ours):\n%s", diff)
			}
		})
	}
	for _, path := range []string{"/debug/pprof", "/debug/pprof/", "/debug/pprof/heap?debug=1", "/debug/pprof/goroutine?debug=1", "/debug/pprof/mutex?debug=1", "/debug/vars"} {
		e := exchange{method: http.MethodGet, path: path}
		head := func(s side) string {
			text, _, _ := strings.Cut(e.answerTo(t, http.DefaultClient, s.url), "\n\n")
			return text
		}
		if diff := cmp.Diff(head(etcd), head(ours)); diff != "" {
			t.Errorf("%s: the answer differs (-etcd +ours):\n%s", path, diff)
		}
	}
}

// A client whose certificate names a user is refused by the gateway, where it
// would be nobody; over gRPC it is that user.
func TestGatewayKnowsNoCertificates(t *testing.T) {
	t.Parallel()
	config := single(t)
	files, clientTLS, _ := certificates(t)
	config.ListenClientURLs, config.ClientTLS = []string{"https://127.0.0.1:0"}, files
	config.AdvertiseClientURLs = config.ListenClientURLs
	server := running(t, config)
	base := "https://" + server.clients[0].Addr().String()
	// Each version of HTTP has a client.
	var clients []*http.Client
	for _, http2 := range []bool{false, true} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: clientTLS, ForceAttemptHTTP2: http2}}
		t.Cleanup(client.CloseIdleConnections)
		clients = append(clients, client)
	}
	ask := post("/v3/kv/range", `{"key":"`+b64("k")+`"}`)
	for version, client := range clients {
		if got := ask.answerTo(t, client, base); !strings.HasPrefix(got, "200 OK") {
			t.Fatalf("HTTP/%d, before auth is enabled: %s", version+1, got)
		}
	}
	connectTLS(t, server, clientTLS).enable()
	for version, client := range clients {
		got := ask.answerTo(t, client, base)
		if !strings.HasPrefix(got, "400 Bad Request") || !strings.Contains(got, "CommonName of client sending a request against gateway will be ignored and not used as expected") {
			t.Errorf("HTTP/%d: %s", version+1, got)
		}
		got = (exchange{method: http.MethodGet, path: "/health"}).answerTo(t, client, base)
		if !strings.HasPrefix(got, "200 OK") {
			t.Errorf("HTTP/%d, health: %s", version+1, got)
		}
	}
}

// Streams of the gateway, over HTTP and over a websocket, end with the member,
// which does not wait for them.
func TestGatewayStreamsEndWithTheMember(t *testing.T) {
	t.Parallel()
	server, err := Start(single(t))
	if err != nil {
		t.Fatal(err)
	}
	<-server.Ready()
	base := server.clients[0].Addr().String()
	const create = `{"create_request":{"key":"aw=="}}`
	response, err := http.Post("http://"+base+"/v3/watch", "application/json", strings.NewReader(create))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body := bufio.NewReader(response.Body)
	if line, err := body.ReadString('\n'); err != nil || !strings.Contains(line, `"created":`) {
		t.Fatalf("the watch begins with %q, %v", line, err)
	}
	socket, err := websocket.Dial("ws://"+base+"/v3/watch", "", "http://"+base)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := socket.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var message string
	if err := errors.Join(websocket.Message.Send(socket, create), websocket.Message.Receive(socket, &message)); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- server.Close() }()
	_, _ = io.Copy(io.Discard, body) // ends, and how depends on how busy the machine is
	for err = nil; err == nil; {
		err = websocket.Message.Receive(socket, &message)
	}
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("the websocket stays open")
	}
	select {
	case err := <-closed:
		if err != nil {
			t.Errorf("close: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the member does not stop")
	}
}
