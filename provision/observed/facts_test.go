package observed

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// answer is what factsScript prints on a Debian 12 host with a member, with
// the parts that differ from host to host made short.
const answer = `clock|1700000000500000000
machine|x86_64
kernel|Linux
missing|flock
systemd|systemd 252 (252.39-1~deb12u1)
user|muster:x:998:998:made by muster:/var/lib/muster:/usr/sbin/nologin
group|
unit|MainPID=815
unit|Result=success
unit|LoadState=loaded
unit|ActiveState=activating
unit|SubState=running
unit|UnitFileState=enabled
unit|NeedDaemonReload=yes
unit|NRestarts=2
socket|LISTEN 0 4096 127.0.0.1:2379 0.0.0.0:* users:(("musterd",pid=815,fd=9))
socket|LISTEN 0 128 *:22 *:* users:(("sshd",pid=400,fd=3))
socket|LISTEN 0 128 [::1]:631 [::]:*
socket|LISTEN 0 4096 127.0.0.53%lo:53 0.0.0.0:* users:(("systemd-resolve",pid=99,fd=14))
unit|MainPID=816
unit|ActiveState=active
file|directory|755|root|root|/etc/muster
file|regular file|640|root|muster|/etc/muster/pki/server.key
file|regular empty file|4755|root|root|/etc/empty|odd
file|symbolic link|777|root|root|/usr/local/bin/etcdctl
link|musterctl|/usr/local/bin/etcdctl
sha256|e3b0c4|/etc/muster/pki/server.key
free|data /dev/sda1 20509264 4433280 15008836 23% /
free|programs
text|/etc/systemd/system/musterd.service
[Unit]
data|absent

end of text|/etc/systemd/system/musterd.service
data|filled
sync|65536 bytes (66 kB, 64 KiB) copied, 0.016 s, 4.1 MB/s
record|{"cluster":"prod","token":"t","member":"controller-0","dataDir":"/var/lib/muster","ca":"ab","clusterID":"c1"}
restart|yes
clock|1700000000600000000
`

func TestParseFacts(t *testing.T) {
	begin := time.Unix(1700000000, 0)
	got, err := parseFacts(answer, begin, begin.Add(200*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	want := Facts{
		Machine: "x86_64", Kernel: "Linux", Systemd: 252, MissingTools: []string{"flock"}, HasUser: true, OwnUser: true,
		Unit: UnitFact{Loaded: true, Active: "active", Sub: "running", Result: "success", Enabled: true, MainPIDs: []int{815, 816}, NeedsReload: true, Restarts: 2},
		Sockets: []Socket{
			{netip.MustParseAddrPort("127.0.0.1:2379"), `("musterd",pid=815,fd=9)`, 815},
			{netip.MustParseAddrPort("[::]:22"), `("sshd",pid=400,fd=3)`, 400},
			{netip.MustParseAddrPort("[::1]:631"), "", 0},
			{netip.MustParseAddrPort("127.0.0.53:53"), `("systemd-resolve",pid=99,fd=14)`, 99},
		},
		Files: map[string]FileFact{
			"/etc/muster":                         {Type: "directory", Mode: 0o755, Owner: "root", Group: "root"},
			"/etc/muster/pki/server.key":          {Type: "regular file", Mode: 0o640, Owner: "root", Group: "muster", SHA256: "e3b0c4"},
			"/etc/empty|odd":                      {Type: "regular file", Mode: 0o4755, Owner: "root", Group: "root"},
			"/usr/local/bin/etcdctl":              {Type: "symbolic link", Mode: 0o777, Owner: "root", Group: "root", Target: "musterctl"},
			"/etc/systemd/system/musterd.service": {Text: "[Unit]\ndata|absent\n"},
		},
		Free: map[string]int64{"data": 15008836 << 10}, Data: DataFilled, Sync: time.Millisecond,
		Record:         Record{Cluster: "prod", Token: "t", Member: "controller-0", DataDir: "/var/lib/muster", CA: "ab", ClusterID: "c1"},
		RestartPending: true,
		ClockOffset:    450 * time.Millisecond, ClockError: 50 * time.Millisecond,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("facts\n%+v\nwant\n%+v", got, want)
	}
}

func TestParseFactsRefuses(t *testing.T) {
	for name, change := range map[string]func(string) string{
		"an answer cut short":  func(s string) string { return s[:len(s)/2] },
		"an unreadable clock":  func(s string) string { return strings.Replace(s, "clock|17", "clock|N", 1) },
		"a foreign record":     func(s string) string { return strings.Replace(s, `{"cluster"`, `<html>`, 1) },
		"an unreadable mode":   func(s string) string { return strings.Replace(s, "|640|", "|rw-|", 1) },
		"an incomplete file":   func(s string) string { return strings.Replace(s, "|root|root|/etc/muster\n", "\n", 1) },
		"an unreadable amount": func(s string) string { return strings.Replace(s, "15008836", "much", 1) },
	} {
		if _, err := parseFacts(change(answer), time.Now(), time.Now()); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestClockOffset(t *testing.T) {
	const ms = int64(time.Millisecond)
	begin := time.Unix(1000, 0)
	for _, test := range []struct {
		first, last   int64 // host's clock after begin
		took          time.Duration
		offset, error time.Duration
	}{
		{10 * ms, 190 * ms, 200 * time.Millisecond, 0, 10 * time.Millisecond},
		{5010 * ms, 5190 * ms, 200 * time.Millisecond, 5 * time.Second, 10 * time.Millisecond},
		{-2990 * ms, -2810 * ms, 200 * time.Millisecond, -3 * time.Second, 10 * time.Millisecond},
		{900 * ms, 950 * ms, 2 * time.Second, -75 * time.Millisecond, 975 * time.Millisecond},
	} {
		text := fmt.Sprintf("clock|%d\nclock|%d\n", begin.UnixNano()+test.first, begin.UnixNano()+test.last)
		f, err := parseFacts(text, begin, begin.Add(test.took))
		if err != nil {
			t.Fatal(err)
		}
		if f.ClockOffset != test.offset || f.ClockError != test.error {
			t.Errorf("%+v: offset %v ± %v", test, f.ClockOffset, f.ClockError)
		}
	}
}
