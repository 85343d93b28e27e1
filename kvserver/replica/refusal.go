package replica

import (
	"errors"

	"muster/kvserver/machine"
	"muster/kvserver/membership"
	"muster/kvserver/replica/peerpb"
)

// refusals are the reasons against a change as they travel between members.
var refusals = map[peerpb.ReconfigureResponse_Refusal]error{
	peerpb.ReconfigureResponse_NOT_LEADER:         errNotLeader,
	peerpb.ReconfigureResponse_MEMBER_EXISTS:      ErrMemberExists,
	peerpb.ReconfigureResponse_PEER_URL_EXISTS:    ErrPeerURLExists,
	peerpb.ReconfigureResponse_MEMBER_NOT_FOUND:   ErrMemberNotFound,
	peerpb.ReconfigureResponse_NOT_LEARNER:        ErrNotLearner,
	peerpb.ReconfigureResponse_LEARNER_NOT_READY:  ErrLearnerNotReady,
	peerpb.ReconfigureResponse_TOO_MANY_LEARNERS:  ErrTooManyLearners,
	peerpb.ReconfigureResponse_NOT_ENOUGH_STARTED: ErrNotEnoughStarted,
	peerpb.ReconfigureResponse_UNHEALTHY:          ErrUnhealthy,
	peerpb.ReconfigureResponse_BAD_URLS:           membership.ErrBadURLs,
}

// refusalOf returns false for an error that is no refusal: the outcome is
// unknown then.
func refusalOf(err error) (peerpb.ReconfigureResponse_Refusal, bool) {
	for refusal, reason := range refusals {
		if errors.Is(err, reason) {
			return refusal, true
		}
	}
	return peerpb.ReconfigureResponse_NONE, false
}

// refusalError is ErrUnhealthy for a reason that only a newer leader knows:
// nothing was changed.
func refusalError(refusal peerpb.ReconfigureResponse_Refusal) error {
	if err, known := refusals[refusal]; known {
		return err
	}
	return ErrUnhealthy
}

func infosOf(members []machine.Member) []*peerpb.MemberInfo {
	infos := make([]*peerpb.MemberInfo, len(members))
	for i, m := range members {
		infos[i] = &peerpb.MemberInfo{Id: m.ID, Name: m.Name, PeerUrls: m.PeerURLs, ClientUrls: m.ClientURLs, Learner: m.Learner}
	}
	return infos
}

func membersOfInfos(infos []*peerpb.MemberInfo) []machine.Member {
	members := make([]machine.Member, len(infos))
	for i, m := range infos {
		members[i] = machine.Member{ID: m.GetId(), Name: m.GetName(), PeerURLs: m.GetPeerUrls(), ClientURLs: m.GetClientUrls(), Learner: m.GetLearner()}
	}
	return members
}
