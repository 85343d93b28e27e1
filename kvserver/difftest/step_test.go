package difftest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/testing/protocmp"
)

// answer is what a request was answered with: a response or an error.
type answer struct {
	response proto.Message
	code     codes.Code
	message  string
}

func answerOf(response proto.Message, err error) answer {
	if err != nil {
		return answer{code: status.Code(err), message: status.Convert(err).Message()}
	}
	return answer{response: response}
}

func (a answer) String() string {
	if a.response == nil {
		return fmt.Sprintf("%v: %s", a.code, a.message)
	}
	return text(a.response)
}

// step is one request. The error of run is a difference between the sides.
type step interface {
	fmt.Stringer
	run(ctx context.Context, p *pair) (etcds answer, err error)
}

// Who asks, besides the users.
const (
	nobody  = ""
	garbage = "garbage" // shows a token that nobody was given
)

// as adds the last token that a user got from this side.
func (s *side) as(ctx context.Context, user string) context.Context {
	token := s.tokens[user]
	if user == garbage {
		token = "garbage.1"
	}
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token)
}

// call is a request that has one answer, or of RangeStream, whose messages are
// put together.
type call struct {
	user    string
	method  string // such as etcdserverpb.KV.Put
	request proto.Message
}

// largeRequest is in bytes; musterd has a megabyte wait for one watch stream.
const largeRequest = 20_000

func (c call) String() string {
	return fmt.Sprintf("%s: %s %s", name(c.user), strings.TrimPrefix(c.method, "etcdserverpb."), text(c.request))
}

func name(user string) string {
	if user == nobody {
		return "nobody"
	}
	return user
}

func (c call) run(ctx context.Context, p *pair) (answer, error) {
	compaction, compacts := c.request.(*pb.CompactionRequest)
	if compacts {
		// etcd ends watchers that have not been shown yet what goes.
		if err := p.settle(); err != nil {
			return answer{}, err
		}
		if p.watches.replaced(compaction.GetRevision()) {
			return answer{}, nil
		}
	}
	want, got := p.both(ctx, func(ctx context.Context, s *side) answer { return answerOf(c.ask(s.as(ctx, c.user), s)) })
	if compacts && want.response != nil {
		p.compactions[compaction.GetRevision()] = true
		p.compacting = !compaction.GetPhysical()
		if err := c.awaitCompaction(ctx, p, compaction.GetRevision()); err != nil {
			return want, err
		}
		p.watches.wasCompacted(compaction.GetRevision())
	}
	if proto.Size(c.request) > largeRequest {
		// Ours shows to a slow client as the past what it has no room for, and
		// that comes with the revision of the moment.
		if err := p.settle(); err != nil {
			return want, err
		}
	}
	if r, ok := c.request.(*pb.RangeRequest); ok && strings.HasSuffix(c.method, "Stream") {
		return want, compare(p, &streamRequest{r}, want, got)
	}
	return want, compare(p, c.request, want, got)
}

// awaitCompaction waits until etcd has removed the history: it does not remember
// the hash of a compaction that is asked for before the one before it is done.
// A physical compaction in vain waits for those under way.
func (c call) awaitCompaction(ctx context.Context, p *pair, revision int64) error {
	_, err := pb.NewKVClient(p.etcd.conn).Compact(p.etcd.as(ctx, c.user), &pb.CompactionRequest{Revision: revision, Physical: true})
	if status.Convert(err).Message() != status.Convert(rpctypes.ErrGRPCCompacted).Message() {
		return fmt.Errorf("wait until etcd has compacted revision %d: %v", revision, err)
	}
	return nil
}

// streamRequest is a request of RangeStream.
type streamRequest struct{ *pb.RangeRequest }

func (c call) ask(ctx context.Context, s *side) (proto.Message, error) {
	method, err := findMethod(c.method)
	if err != nil {
		return nil, err
	}
	path := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
	if method.IsStreamingServer() {
		return rangeStream(ctx, s.conn, c.request.(*pb.RangeRequest))
	}
	kind, err := protoregistry.GlobalTypes.FindMessageByName(method.Output().FullName())
	if err != nil {
		return nil, err
	}
	response := kind.New().Interface()
	return response, s.conn.Invoke(ctx, path, c.request, response)
}

func findMethod(name string) (protoreflect.MethodDescriptor, error) {
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return nil, err
	}
	return found.(protoreflect.MethodDescriptor), nil
}

// rangeStream puts the messages of a stream together: the last one has all but
// the keys, the others have nothing else.
func rangeStream(ctx context.Context, conn *grpc.ClientConn, r *pb.RangeRequest) (proto.Message, error) {
	stream, err := pb.NewKVClient(conn).RangeStream(ctx, r)
	if err != nil {
		return nil, err
	}
	whole := &pb.RangeResponse{}
	for {
		message, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && whole.GetHeader() == nil:
			return nil, errors.New("the last message has no header")
		case errors.Is(err, io.EOF):
			return whole, nil
		case err != nil:
			return nil, err
		}
		part := message.GetRangeResponse()
		if whole.GetHeader() != nil || part.GetHeader() == nil && (part.GetCount() != 0 || part.GetMore()) {
			return nil, errors.New("what belongs into the last message came earlier")
		}
		whole.Header, whole.Count, whole.More = part.GetHeader(), part.GetCount(), part.GetMore()
		whole.Kvs = append(whole.Kvs, part.GetKvs()...)
	}
}

// keepAlive renews leases over one stream.
type keepAlive struct {
	user string
	ids  []int64
}

func (k keepAlive) String() string {
	return fmt.Sprintf("%s: Lease.LeaseKeepAlive %d", name(k.user), k.ids)
}

// run compares the answers one by one; the last one is returned.
func (k keepAlive) run(ctx context.Context, p *pair) (answer, error) {
	all := map[string][]answer{}
	for _, s := range []*side{p.etcd, p.ours} {
		for a := range k.answers(ctx, s) {
			all[s.name] = append(all[s.name], a)
		}
	}
	etcds, ours := all[p.etcd.name], all[p.ours.name]
	for i := range min(len(etcds), len(ours)) {
		if err := compare(p, nil, etcds[i], ours[i]); err != nil {
			return etcds[i], fmt.Errorf("answer %d: %w", i, err)
		}
	}
	if len(etcds) != len(ours) {
		return answer{}, fmt.Errorf("etcd has %d answers, ours %d", len(etcds), len(ours))
	}
	return etcds[len(etcds)-1], nil
}

func (k keepAlive) answers(ctx context.Context, s *side) func(yield func(answer) bool) {
	return func(yield func(answer) bool) {
		ctx, cancel := context.WithTimeout(ctx, stepTimeout)
		defer cancel()
		stream, err := pb.NewLeaseClient(s.conn).LeaseKeepAlive(s.as(ctx, k.user))
		for _, id := range k.ids {
			var response *pb.LeaseKeepAliveResponse
			if err == nil {
				err = stream.Send(&pb.LeaseKeepAliveRequest{ID: id})
			}
			if err == nil || errors.Is(err, io.EOF) { // Recv has the error that ended the stream
				response, err = stream.Recv()
			}
			if !yield(answerOf(response, err)) || err != nil {
				return
			}
		}
	}
}

// login gets a token, to be shown by what the user asks next. In vain, the user
// keeps the token there is.
type login struct{ user, password string }

func (l login) String() string { return fmt.Sprintf("Auth.Authenticate %q %q", l.user, l.password) }

func (l login) run(ctx context.Context, p *pair) (answer, error) {
	request := &pb.AuthenticateRequest{Name: l.user, Password: l.password}
	want, got := p.both(ctx, func(ctx context.Context, s *side) answer {
		response, err := pb.NewAuthClient(s.conn).Authenticate(ctx, request)
		if err == nil {
			s.tokens[l.user] = response.GetToken()
		}
		return answerOf(response, err)
	})
	return want, compare(p, request, want, got)
}

// shortestTTL is in seconds; a lease of less may expire while it is looked at.
const shortestTTL = 100_000

// leaseOfAnyID grants a lease with an ID of the server's choice, and revokes it.
type leaseOfAnyID struct {
	user string
	ttl  int64
}

func (l leaseOfAnyID) String() string {
	return fmt.Sprintf("%s: Lease.LeaseGrant and LeaseRevoke, TTL %d", name(l.user), l.ttl)
}

func (l leaseOfAnyID) run(ctx context.Context, p *pair) (answer, error) {
	request := &pb.LeaseGrantRequest{TTL: l.ttl}
	ids := make(chan struct {
		*side
		id int64
	}, 2)
	want, got := p.both(ctx, func(ctx context.Context, s *side) answer {
		response, err := pb.NewLeaseClient(s.conn).LeaseGrant(s.as(ctx, l.user), request)
		if err == nil {
			ids <- struct {
				*side
				id int64
			}{s, response.GetID()}
		}
		return answerOf(response, err)
	})
	if err := compare(p, request, want, got); err != nil || want.response == nil {
		return want, err
	}
	chosen := map[*side]int64{}
	for range 2 {
		c := <-ids
		chosen[c.side] = c.id
	}
	want, got = p.both(ctx, func(ctx context.Context, s *side) answer {
		return answerOf(pb.NewLeaseClient(s.conn).LeaseRevoke(s.as(ctx, l.user), &pb.LeaseRevokeRequest{ID: chosen[s]}))
	})
	if l.ttl < shortestTTL {
		return want, nil // it may have expired meanwhile
	}
	return want, compare(p, nil, want, got)
}

// compare returns how our answer differs from etcd's, apart from the
// exemptions, which are applied to both.
func compare(p *pair, request proto.Message, want, got answer) error {
	if exempt(p, request, want, got) {
		return nil
	}
	if want.response == nil || got.response == nil {
		if want == got {
			return nil
		}
		return fmt.Errorf("the answers differ:\n  etcd: %v\n  ours: %v", want, got)
	}
	// What comes from one message may not be changed: it is shown as it came.
	etcds, ours := proto.Clone(want.response), proto.Clone(got.response)
	wantSet, gotSet := mask(p, request, etcds), mask(p, request, ours)
	if proto.Equal(etcds, ours) && cmp.Equal(wantSet, gotSet) {
		return nil
	}
	return fmt.Errorf("the answers differ:\n  etcd: %s\n  ours: %s\n(-etcd +ours)\n%s%s", text(want.response), text(got.response),
		cmp.Diff(etcds, ours, protocmp.Transform()), cmp.Diff(wantSet, gotSet))
}

// text is a message on one line, with long keys and values cut.
func text(m proto.Message) string {
	short := proto.Clone(m)
	cut(short.ProtoReflect())
	// prototext varies its blanks on purpose.
	return "{" + strings.TrimSpace(blanks.ReplaceAllString(prototext.MarshalOptions{}.Format(short), " ")) + "}"
}

var blanks = regexp.MustCompile(` +`)

func cut(m protoreflect.Message) {
	const longest = 64
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.Kind() == protoreflect.BytesKind && !field.IsList():
			if b := value.Bytes(); len(b) > longest {
				m.Set(field, protoreflect.ValueOfBytes(bytes.Join([][]byte{b[:8], fmt.Appendf(nil, "...%d bytes", len(b))}, nil)))
			}
		case field.IsMap():
		case field.Message() != nil && field.IsList():
			for i := range value.List().Len() {
				cut(value.List().Get(i).Message())
			}
		case field.Message() != nil:
			cut(value.Message())
		}
		return true
	})
}
